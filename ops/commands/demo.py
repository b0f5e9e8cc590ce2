"""`atelier demo`: one order for a picture or an advertisement on real services, with a fake backend; reports whether it succeeded."""

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from bus.amqp.messages import build_cancel
from bus.amqp.publisher import Publisher, open_publisher
from bus.amqp.subscriptions import subscribe_events
from bus.errors import PublishError
from bus.observability.logs import configure_logging
from bus.settings import BusSettings
from contracts.broker_names import job_binding_key
from ops.commands.demo_backend import FakeBackend, open_fake_backend
from ops.commands.demo_orders import publish_order
from ops.commands.demo_output import DemoDisplay, ends_step, open_display
from ops.commands.demo_phases import PhaseClock
from ops.commands.demo_report import DemoJob
from ops.local.model_choice import ModelChoice, choose_models, fetch_missing_models, merged_environment, require_libraries
from ops.local.stack import ServiceUrls, local_stack
from ops.local.tiny_models import copy_trained_models, tiny_model_paths
from ops.settings import LocalSettings, inherited_environment
from ops.supervisor import open_supervisor

PROCESSES = ("image_generation watermark upload webhook ledger", "image")
AD_PROCESSES = ("text overlay watermark upload webhook ledger", "image", "validate judge")
"""The steps of each worker process."""

QUICK_LOAD = {"IMAGE_MEASURE_SECONDS": "0", "IMAGE_PREVIEW_SECONDS": "0"}
"""Settings of the image actor: it measures no numbers of rows for one order, and prepares no previews that nobody sees."""
JOB_SECONDS, WEBHOOK_SECONDS = 600.0, 30.0


@dataclass(frozen=True)
class DemoStack:
    """`publisher`: a backend's connection, or a gateway's for an advertisement. `operator`: the one that follows the events.

    `generation_id`: of the order. `choices`: the models of the actors.
    """

    generation_id: int
    backend: FakeBackend
    publisher: Publisher
    operator: Publisher
    choices: Sequence[ModelChoice]


def demo(arguments: Namespace) -> int:
    configure_logging("WARNING")
    return asyncio.run(run_demo(arguments, LocalSettings()))


async def run_demo(arguments: Namespace, settings: LocalSettings) -> int:
    """Returns 0 only if the picture is in the store and the backend received exactly one completion webhook."""
    clock = PhaseClock()
    folder = settings.local_folder.resolve()
    with open_display(quiet=arguments.json) as display:
        async with open_demo_stack(folder, settings, display, clock, ad=arguments.ad) as stack:
            job = await publish_and_follow(arguments, folder, stack, display, clock)
        clock.finish("stop")
        report = job.report(stack.backend, clock)
        report["models"] = [choice.to_json() for choice in stack.choices]
        critics = {Path(model).name for model in report.get("ad", {}).get("seen_by", ())}
        if toys := [choice.model for choice in stack.choices if choice.is_toy and choice.model in critics]:
            report["ad"]["toy_critic"] = toys[0]
    sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n" if arguments.json else display.summary(report, job.events))
    return 0 if report["ok"] else 1


@asynccontextmanager
async def open_demo_stack(
    folder: Path, settings: LocalSettings, display: DemoDisplay, clock: PhaseClock, *, ad: bool
) -> AsyncIterator[DemoStack]:
    """Services of the demo's own (the actors of a running `atelier up` would consume its orders), a fake backend, and the actors."""
    own = settings.model_copy(update={"local_folder": folder / "demo"})
    models, processes = folder / "models", AD_PROCESSES if ad else PROCESSES
    steps = " ".join(processes).split()
    display.set_status("looking for models")
    await fetch_missing_models(steps, models, may_install=settings.may_install)
    choices = choose_models(steps, tiny_model_paths(models))
    require_libraries(choices)
    display.show_models(choices)
    display.set_status("starting RabbitMQ and PostgreSQL")
    if any(choice.is_toy for choice in choices):
        await to_thread.run_sync(copy_trained_models, models)
    clock.finish("models")
    generation_id = time.time_ns() // 1_000_000
    async with local_stack(own) as urls, open_fake_backend(generation_id=generation_id) as backend:
        clock.finish("services")
        quick = QUICK_LOAD | toy_threads(choices)
        given = {"MODEL_DIR": str(models)} | quick | inherited_environment() | urls.environment
        environment = merged_environment(given | {"BACKEND_API_URL": backend.url}, choices, models)
        display.set_status("starting the actors")
        async with (
            open_supervisor(processes, environment, display.record_line) as supervisor,
            open_publisher(bus_settings(urls, "gateway" if ad else "publisher")) as publisher,
            open_publisher(bus_settings(urls, "operator")) as operator,
        ):
            await supervisor.wait_until_ready(timeout_seconds=settings.ready_seconds)
            clock.finish("workers")
            yield DemoStack(generation_id, backend, publisher, operator, choices)


def toy_threads(choices: Sequence[ModelChoice]) -> dict[str, str]:
    """One thread for each toy: its layers are so small that several threads would mostly wait for each other, busily."""
    variables = {"image": "IMAGE_THREADS", "text": "TEXT_THREADS"}
    return {variables.get(choice.use, "VLM_THREADS"): "1" for choice in choices if choice.is_toy}


def bus_settings(urls: ServiceUrls, role: str) -> BusSettings:
    return BusSettings.model_validate({"amqp_url": urls.amqp_url_of(role), "database_url": urls.database_url, **urls.secrets})


async def publish_and_follow(arguments: Namespace, folder: Path, stack: DemoStack, display: DemoDisplay, clock: PhaseClock) -> DemoJob:
    """Publish one order and follow its job until it has ended and the backend has received the last webhook."""
    job = DemoJob(f"generation-{stack.generation_id}")
    async with subscribe_events(stack.operator, job_binding_key(job.job_id)) as events, cancelled_unless_finished(job, stack.operator):
        display.set_status("publishing an order")
        lora = style_lora(folder / "models", stack.choices)
        await publish_order(arguments, stack.generation_id, job.job_id, lora, stack.publisher)
        async with asyncio.timeout(JOB_SECONDS):
            while not job.is_finished:
                job.events.append(await events.get())
                display.show_event(job.events[-1])
                if ends_step(job.events[-1]):
                    clock.finish(job.events[-1].step)
    async with asyncio.timeout(WEBHOOK_SECONDS):
        await stack.backend.finished.wait()
    clock.finish("webhook")
    return job


@asynccontextmanager
async def cancelled_unless_finished(job: DemoJob, operator: Publisher) -> AsyncIterator[None]:
    """A block that ends early, as by Ctrl-C, cancels the job: workers would finish it within their grace period, the next demo the rest."""
    try:
        yield
    finally:
        if not job.is_finished:
            with suppress(PublishError):
                await operator.publish(build_cancel(job.job_id))


def style_lora(models: Path, choices: Sequence[ModelChoice]) -> str | None:
    """The address of the toy's LoRA, which fits no other model."""
    toy_draws = any(choice.use == "image" and choice.is_toy for choice in choices)
    return tiny_model_paths(models)["tiny-neat"].as_uri() if toy_draws else None
