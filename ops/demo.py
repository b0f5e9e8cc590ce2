"""`atelier demo`: one image order on real parts. Plays the backend, watches the job, and says whether all of it happened."""

import asyncio
import hashlib
import json
import sys
import time
from argparse import Namespace
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bus.events import job_key, open_events
from bus.logs import open_logs
from bus.outbox import Outbox, open_outbox
from bus.settings import BusSettings
from contracts.event import Event, EventKind
from ops.backend import Backend, open_backend, order_letter
from ops.crew import open_crew
from ops.demo_screen import Screen, on_the_way, open_screen
from ops.errors import SetupError
from ops.local.stack import Addresses, local_stack
from ops.models import PAINTER, tiny_in
from ops.settings import LocalSettings, inherited

CREW = ("image_generation watermark upload webhook ledger", "image")
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
        async with open_workshop(folder, settings, screen) as (backend, outbox):
            story = await order(arguments, folder, backend, outbox, screen)
        report = story.report(backend, round(time.monotonic() - started, 3))
    sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n" if arguments.json else screen.ending(report, story.events))
    return 0 if report["ok"] else 1


@asynccontextmanager
async def open_workshop(folder: Path, settings: LocalSettings, screen: Screen) -> AsyncIterator[tuple[Backend, Outbox]]:
    """Parts of the demo's own (an `atelier up` beside it would take its orders), a backend, and the actors as processes."""
    own = settings.model_copy(update={"local_folder": folder / "demo"})
    screen.now("starting RabbitMQ and PostgreSQL, looking for the models")
    models = asyncio.create_task(tiny_models(folder / "models"))
    async with local_stack(own) as parts, open_backend() as backend:
        made = await models
        environment = inherited() | parts.environment | surroundings(folder, backend, made)
        screen.now("starting the actors")
        async with open_crew(CREW, environment, screen.say) as crew, open_outbox(BusSettings.model_validate(_urls(parts))) as outbox:
            await crew.ready(timeout_seconds=READY_SECONDS)
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
        "MODEL_DIR": str(folder / "models"),
        "ASSET_ROOTS": str(folder / "models"),
    }


def _urls(parts: Addresses) -> dict[str, str]:
    return {"amqp_url": parts.amqp_url, "database_url": parts.database_url}


async def order(arguments: Namespace, folder: Path, backend: Backend, outbox: Outbox, screen: Screen) -> "Story":
    """Publish one order, and follow its job to the end and to the backend's last webhook."""
    generation_id = time.time_ns() // 1_000_000
    story = Story(f"generation-{generation_id}")
    async with open_events(outbox, job_key(story.job_id)) as heard:
        screen.now("publishing an order to image_generation")
        lora = (folder / "models" / "loras" / "tiny-neat.safetensors").as_uri()
        await outbox.post(order_letter(generation_id, order_data(arguments, lora)))
        async with asyncio.timeout(JOB_SECONDS):
            while not story.ended:
                story.events.append(await heard.get())
                screen.show(story.events[-1])
    async with asyncio.timeout(WEBHOOK_SECONDS):
        await backend.finished.wait()
    return story


def order_data(arguments: Namespace, lora: str) -> dict[str, Any]:
    """The order's `data`. A size in pixels goes the way of form A's parameters."""
    data = {
        "prompt": arguments.prompt,
        "prompt_tags": [arguments.prompt],
        "artist_name": arguments.artist,
        "num_inference_steps": arguments.steps,
        "count": arguments.count,
        "lora_path": lora,
        "seed": None,
        "signature_path": "",
        "signature_config": {"position": "bottom-right", "size": "medium", "opacity": 0.7},
    }
    by_ratio = ":" in arguments.size
    return data | ({"aspect_ratio": arguments.size} if by_ratio else {"parameters": {"size": arguments.size}})


@dataclass
class Story:
    """What happened to the job."""

    job_id: str
    events: list[Event] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].step == "job" and self.events[-1].kind is not EventKind.ACCEPTED

    @property
    def picture(self) -> dict[str, Any] | None:
        """The uploaded picture's claim."""
        uploads = [event.result for event in self.events if event.step == "upload" and event.result]
        return uploads[-1]["files"][0] if uploads else None

    def report(self, backend: Backend, seconds: float) -> dict[str, Any]:
        """One JSON document. `ok`: the picture is in the store as it was claimed, and the backend was told once that it is."""
        picture = self.picture or {}
        path = Path(unquote(urlsplit(picture.get("uri", "")).path)) if picture else None
        steps = [{"step": event.step, "seconds": event.seconds} for event in self.events if on_the_way(event)]
        report: dict[str, Any] = {
            "ok": self._whole(path, picture) and backend.completed,
            "job_id": self.job_id,
            "image_path": str(path) if path else None,
            "width": picture.get("width"),
            "height": picture.get("height"),
            "sha256": picture.get("sha256"),
            "webhooks": backend.webhooks,
            "steps": steps,
            "seconds": seconds,
        }
        fault = next((event.fault for event in self.events if event.fault), None)
        return report | ({"fault": fault.model_dump(exclude_none=True)} if fault else {})

    def _whole(self, path: Path | None, picture: dict[str, Any]) -> bool:
        return path is not None and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == picture["sha256"]
