"""A stand-in for the image step where a test is about the bus: flat colours by Pillow, at once. The real engine has tests of its own."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from asyncpg import Connection
from PIL import Image as Pillow

from bus.actor import Actor, Context, Handler, Resources, Transactional
from bus.errors import PermanentError, TemporaryError
from bus.storage.claim_store import ClaimStore
from contracts.event import Progress
from contracts.image import Image, ImageDone, ImageMetadata
from contracts.wire import Step


async def generate_images(command: Image, context: Context, *, claims: ClaimStore, transactional: bool) -> ImageDone | Transactional:
    """The prompt decides: `fails` fails for good, `shaky` fails once, `slow` takes its time, `quiet` reports nothing."""
    if "fails" in command.prompt:
        raise PermanentError("lora-missing", "no such weights")
    if "shaky" in command.prompt and context.attempt == 1:
        raise TemporaryError("not yet", delay=0.1)
    if "slow" in command.prompt:
        await asyncio.sleep(1.5)
    for percent in () if "quiet" in command.prompt else (0, 25, 50, 75, 90):
        await context.report_progress(Progress(current_step=percent, total_steps=100, progress_percent=percent))
    seed = command.seed or 7
    images = [
        await claims.write(solid_color_png(command, index), media_type="image/png", width=command.width, height=command.height)
        for index in range(command.count)
    ]
    metadata = ImageMetadata(seed=seed, steps=command.steps, guidance_scale=command.guidance_scale)
    done = ImageDone(images=images, metadata=metadata, seeds=[seed + index for index in range(command.count)])
    return Transactional(done, partial(record_run, context.job_id)) if transactional else done


def solid_color_png(command: Image, index: int) -> bytes:
    """Another colour for each picture of an order."""
    colour = hashlib.sha256(f"{command.prompt}{index or ''}".encode()).digest()[:3]
    with io.BytesIO() as file:
        Pillow.new("RGB", (command.width, command.height), tuple(colour)).save(file, "PNG")
        return file.getvalue()


async def record_run(job_id: str, connection: Connection) -> None:
    """One row for each run that counts: an effect that would show twice."""
    await connection.execute("insert into atelier.painted (job_id) values ($1)", job_id)


@asynccontextmanager
async def open_fake_image_actor(tools: Resources) -> AsyncIterator[Handler]:
    yield partial(generate_images, claims=tools.claims, transactional=tools.database is not None)


FAKE_IMAGE_ACTOR = Actor(
    step=Step.IMAGE,
    command=Image,
    result=ImageDone,
    open=open_fake_image_actor,
    timeout_seconds=30,
    prefetch=10,
    schema="create schema if not exists atelier; create table if not exists atelier.painted (job_id text not null)",
)
