"""`atelier demo`: one order for a picture or an advertisement on real services, with a fake backend; reports whether it succeeded."""

import asyncio
import json
import sys
import time
from argparse import Namespace
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bus.amqp.publisher import Publisher, open_publisher
from bus.amqp.subscriptions import job_binding_key, subscribe_events
from bus.observability.logs import configure_logging
from bus.settings import BusSettings
from ops.commands.demo_backend import FakeBackend, open_fake_backend
from ops.commands.demo_orders import publish_order
from ops.commands.demo_output import DemoDisplay, open_display
from ops.commands.demo_report import DemoJob
from ops.errors import SetupError
from ops.local.stack import ServiceUrls, llm_server, local_stack
from ops.local.tiny_models import TINY_DIFFUSION, TINY_VLM, tiny_model_paths
from ops.settings import LocalSettings, inherited_environment
from ops.supervisor import READY_SECONDS, open_supervisor

PROCESSES = ("image_generation watermark upload webhook ledger", "image")
AD_PROCESSES = ("text overlay watermark upload webhook ledger", "image", "validate judge")
"""The steps of each worker process."""

JOB_SECONDS, WEBHOOK_SECONDS = 600.0, 30.0


@dataclass(frozen=True)
class DemoStack:
    """`publisher`: a backend's connection, or a gateway's for an advertisement. `operator`: the one that follows the events."""

    backend: FakeBackend
    publisher: Publisher
    operator: Publisher


def demo(arguments: Namespace) -> int:
    configure_logging("WARNING")
    return asyncio.run(run_demo(arguments, LocalSettings()))


async def run_demo(arguments: Namespace, settings: LocalSettings) -> int:
    """Returns 0 only if the picture is in the store and the backend received exactly one completion webhook."""
    started = time.monotonic()
    folder = settings.local_folder.resolve()
    with open_display(quiet=arguments.json) as display:
        async with open_demo_stack(folder, settings, display, ad=arguments.ad) as stack:
            job = await publish_and_follow(arguments, folder, stack, display)
        report = job.report(stack.backend, round(time.monotonic() - started, 3))
    sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n" if arguments.json else display.summary(report, job.events))
    return 0 if report["ok"] else 1


@asynccontextmanager
async def open_demo_stack(folder: Path, settings: LocalSettings, display: DemoDisplay, *, ad: bool) -> AsyncIterator[DemoStack]:
    """Services of the demo's own (the actors of a running `atelier up` would consume its orders), a fake backend, and the actors."""
    own = settings.model_copy(update={"local_folder": folder / "demo"})
    llm_servers = [llm_server(own.local_folder)] if ad else []
    display.set_status("starting RabbitMQ and PostgreSQL, making the models")
    making_models = asyncio.create_task(make_tiny_models_in_subprocess(folder / "models"))
    async with local_stack(own, *llm_servers) as urls, open_fake_backend() as backend:
        environment = inherited_environment() | urls.environment | demo_environment(folder, backend, await making_models)
        for server in llm_servers:
            environment |= server.environment
        display.set_status("starting the actors")
        async with (
            open_supervisor(AD_PROCESSES if ad else PROCESSES, environment, display.record_line) as supervisor,
            open_publisher(bus_settings(urls, "gateway" if ad else "publisher")) as publisher,
            open_publisher(bus_settings(urls, "operator")) as operator,
        ):
            await supervisor.wait_until_ready(timeout_seconds=READY_SECONDS)
            yield DemoStack(backend, publisher, operator)


async def make_tiny_models_in_subprocess(folder: Path) -> dict[str, Path]:
    """Make those that are missing, in a subprocess, so that the demo itself does not import torch. Raises SetupError."""
    paths = tiny_model_paths(folder)
    if not all(path.exists() for path in paths.values()):
        command = [sys.executable, "-m", "ops.cli", "models", "tiny", "--folder", str(folder)]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
        output, _ = await process.communicate()
        if process.returncode:
            raise SetupError(f"The tiny models could not be made:\n{output.decode(errors='replace')[-2000:]}")
    return paths


def demo_environment(folder: Path, backend: FakeBackend, models: dict[str, Path]) -> dict[str, str]:
    """The models of the actors, and the URL of their backend."""
    return {
        "BACKEND_API_URL": backend.url,
        "IMAGE_MODEL": str(models[TINY_DIFFUSION]),
        "VLM_MODEL": str(models[TINY_VLM]),
        "MODEL_DIR": str(folder / "models"),
        "ASSET_ROOTS": str(folder / "models"),
    }


def bus_settings(urls: ServiceUrls, role: str) -> BusSettings:
    return BusSettings.model_validate({"amqp_url": urls.amqp_url_of(role), "database_url": urls.database_url, **urls.secrets})


async def publish_and_follow(arguments: Namespace, folder: Path, stack: DemoStack, display: DemoDisplay) -> DemoJob:
    """Publish one order and follow its job until it has ended and the backend has received the last webhook."""
    generation_id = time.time_ns() // 1_000_000
    job = DemoJob(f"generation-{generation_id}")
    async with subscribe_events(stack.operator, job_binding_key(job.job_id)) as events:
        display.set_status("publishing an order")
        await publish_order(arguments, generation_id, job.job_id, folder / "models", stack.publisher)
        async with asyncio.timeout(JOB_SECONDS):
            while not job.is_finished:
                job.events.append(await events.get())
                display.show_event(job.events[-1])
    async with asyncio.timeout(WEBHOOK_SECONDS):
        await stack.backend.finished.wait()
    return job
