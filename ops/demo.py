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

from bus.events import job_key, open_events
from bus.logs import open_logs
from bus.outbox import Outbox, open_outbox
from bus.settings import BusSettings
from ops.backend import Backend, open_backend
from ops.crew import open_crew
from ops.demo_orders import send
from ops.demo_screen import Screen, open_screen
from ops.demo_story import Story
from ops.errors import SetupError
from ops.local.stack import Addresses, local_stack, writing_server
from ops.models import CRITIC, PAINTER, tiny_in
from ops.settings import LocalSettings, inherited

CREW = ("image_generation watermark upload webhook ledger", "image")
AD_CREW = ("text overlay watermark upload webhook ledger", "image", "validate judge")
"""Who works in which process."""

READY_SECONDS, JOB_SECONDS, WEBHOOK_SECONDS = 90.0, 600.0, 30.0


def demo(arguments: Namespace) -> int:
    open_logs("WARNING")
    return asyncio.run(run(arguments, LocalSettings()))


async def run(arguments: Namespace, settings: LocalSettings) -> int:
    """Returns 0 only if the picture is there and the backend was told so, once."""
    started = time.monotonic()
    folder = settings.local_folder.resolve()
    with open_screen(quiet=arguments.json) as screen:
        async with open_workshop(folder, settings, screen, ad=arguments.ad) as (backend, outbox):
            story = await order(arguments, folder, backend, outbox, screen)
        report = story.report(backend, round(time.monotonic() - started, 3))
    sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n" if arguments.json else screen.ending(report, story.events))
    return 0 if report["ok"] else 1


@asynccontextmanager
async def open_workshop(folder: Path, settings: LocalSettings, screen: Screen, *, ad: bool) -> AsyncIterator[tuple[Backend, Outbox]]:
    """Parts of the demo's own (an `atelier up` beside it would take its orders), a backend, and the actors as processes."""
    own = settings.model_copy(update={"local_folder": folder / "demo"})
    writers = [writing_server(own.local_folder)] if ad else []
    screen.now("starting RabbitMQ and PostgreSQL, looking for the models")
    models = asyncio.create_task(tiny_models(folder / "models"))
    async with local_stack(own, *writers) as parts, open_backend() as backend:
        made = await models
        environment = inherited() | parts.environment | surroundings(folder, backend, made)
        for writer in writers:
            environment |= writer.environment
        crew, bus = AD_CREW if ad else CREW, BusSettings.model_validate(_urls(parts))
        screen.now("starting the actors")
        async with open_crew(crew, environment, screen.say) as at_work, open_outbox(bus) as outbox:
            await at_work.ready(timeout_seconds=READY_SECONDS)
            yield backend, outbox


async def tiny_models(folder: Path) -> dict[str, Path]:
    """Make them where they are missing, in a process of its own: the demo itself needs no torch. Raises SetupError."""
    made = tiny_in(folder)
    if not all(path.exists() for path in made.values()):
        words = [sys.executable, "-m", "ops.cli", "models", "tiny", "--folder", str(folder)]
        maker = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=STDOUT)
        said, _ = await maker.communicate()
        if maker.returncode:
            raise SetupError(f"The tiny models could not be made:\n{said.decode(errors='replace')[-2000:]}")
    return made


def surroundings(folder: Path, backend: Backend, made: dict[str, Path]) -> dict[str, str]:
    """Which model the actors use, and where their backend is."""
    return {
        "BACKEND_API_URL": backend.url,
        "IMAGE_MODEL": str(made[PAINTER]),
        "VLM_MODEL": str(made[CRITIC]),
        "MODEL_DIR": str(folder / "models"),
        "ASSET_ROOTS": str(folder / "models"),
    }


def _urls(parts: Addresses) -> dict[str, str]:
    return {"amqp_url": parts.amqp_url, "database_url": parts.database_url}


async def order(arguments: Namespace, folder: Path, backend: Backend, outbox: Outbox, screen: Screen) -> Story:
    """Publish one order, and follow its job to the end and to the backend's last webhook."""
    generation_id = time.time_ns() // 1_000_000
    story = Story(f"generation-{generation_id}")
    async with open_events(outbox, job_key(story.job_id)) as heard:
        screen.now("publishing an order")
        await send(arguments, generation_id, story.job_id, folder / "models", outbox)
        async with asyncio.timeout(JOB_SECONDS):
            while not story.ended:
                story.events.append(await heard.get())
                screen.show(story.events[-1])
    async with asyncio.timeout(WEBHOOK_SECONDS):
        await backend.finished.wait()
    return story
