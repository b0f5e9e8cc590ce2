"""`atelier demo`: one order on real parts, for a picture or an advertisement. Plays the backend, watches, and says whether all happened."""

import asyncio
import json
import sys
import time
from argparse import Namespace
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from ops.supervisor import open_supervisor

PROCESSES = ("image_generation watermark upload webhook ledger", "image")
AD_PROCESSES = ("text overlay watermark upload webhook ledger", "image", "validate judge")
"""Who works in which process."""

READY_SECONDS, JOB_SECONDS, WEBHOOK_SECONDS = 90.0, 600.0, 30.0


def demo(arguments: Namespace) -> int:
    configure_logging("WARNING")
    return asyncio.run(run_demo(arguments, LocalSettings()))


async def run_demo(arguments: Namespace, settings: LocalSettings) -> int:
    """Returns 0 only if the picture is there and the backend was told so, once."""
    started = time.monotonic()
    folder = settings.local_folder.resolve()
    with open_display(quiet=arguments.json) as screen:
        async with open_demo_stack(folder, settings, screen, ad=arguments.ad) as (backend, outbox):
            story = await publish_and_follow(arguments, folder, backend, outbox, screen)
        report = story.report(backend, round(time.monotonic() - started, 3))
    sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n" if arguments.json else screen.summary(report, story.events))
    return 0 if report["ok"] else 1


@asynccontextmanager
async def open_demo_stack(
    folder: Path, settings: LocalSettings, display: DemoDisplay, *, ad: bool
) -> AsyncIterator[tuple[FakeBackend, Publisher]]:
    """Parts of the demo's own (an `atelier up` beside it would take its orders), a backend, and the actors as processes."""
    own = settings.model_copy(update={"local_folder": folder / "demo"})
    writers = [llm_server(own.local_folder)] if ad else []
    display.set_status("starting RabbitMQ and PostgreSQL, looking for the models")
    models = asyncio.create_task(make_tiny_models_in_subprocess(folder / "models"))
    async with local_stack(own, *writers) as parts, open_fake_backend() as backend:
        made = await models
        environment = inherited_environment() | parts.environment | demo_environment(folder, backend, made)
        for writer in writers:
            environment |= writer.environment
        crew, bus = AD_PROCESSES if ad else PROCESSES, BusSettings.model_validate(_bus_urls(parts))
        display.set_status("starting the actors")
        async with open_supervisor(crew, environment, display.record_line) as at_work, open_publisher(bus) as outbox:
            await at_work.wait_until_ready(timeout_seconds=READY_SECONDS)
            yield backend, outbox


async def make_tiny_models_in_subprocess(folder: Path) -> dict[str, Path]:
    """Make them where they are missing, in a process of its own: the demo itself needs no torch. Raises SetupError."""
    made = tiny_model_paths(folder)
    if not all(path.exists() for path in made.values()):
        words = [sys.executable, "-m", "ops.cli", "models", "tiny", "--folder", str(folder)]
        maker = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=STDOUT)
        said, _ = await maker.communicate()
        if maker.returncode:
            raise SetupError(f"The tiny models could not be made:\n{said.decode(errors='replace')[-2000:]}")
    return made


def demo_environment(folder: Path, backend: FakeBackend, models: dict[str, Path]) -> dict[str, str]:
    """Which model the actors use, and where their backend is."""
    return {
        "BACKEND_API_URL": backend.url,
        "IMAGE_MODEL": str(models[TINY_DIFFUSION]),
        "VLM_MODEL": str(models[TINY_VLM]),
        "MODEL_DIR": str(folder / "models"),
        "ASSET_ROOTS": str(folder / "models"),
    }


def _bus_urls(urls: ServiceUrls) -> dict[str, str]:
    return {"amqp_url": urls.amqp_url, "database_url": urls.database_url}


async def publish_and_follow(arguments: Namespace, folder: Path, backend: FakeBackend, outbox: Publisher, display: DemoDisplay) -> DemoJob:
    """Publish one order, and follow its job to the end and to the backend's last webhook."""
    generation_id = time.time_ns() // 1_000_000
    story = DemoJob(f"generation-{generation_id}")
    async with subscribe_events(outbox, job_binding_key(story.job_id)) as heard:
        display.set_status("publishing an order")
        await publish_order(arguments, generation_id, story.job_id, folder / "models", outbox)
        async with asyncio.timeout(JOB_SECONDS):
            while not story.is_finished:
                story.events.append(await heard.get())
                display.show_event(story.events[-1])
    async with asyncio.timeout(WEBHOOK_SECONDS):
        await backend.finished.wait()
    return story
