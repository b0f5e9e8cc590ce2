"""A fake image step for tests of the bus: solid colours, without an engine."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Connection
from PIL import Image as Pillow

from bus.actor import Actor, Context, Handler, Resources, Transactional
from bus.errors import PermanentError, TemporaryError
from bus.storage.claim_store import ClaimStore
from contracts.event import Progress
from contracts.image import Image, ImageDone, ImageMetadata
from contracts.wire import Step

OWN_SIDE, OWN_STEPS, OWN_GUIDANCE_SCALE = 512, 30, 7.5
"""What an order without these values gets."""


async def generate_images(command: Image, context: Context, *, claims: ClaimStore, transactional: bool) -> ImageDone | Transactional:
    """The prompt decides: `fails` fails permanently, `shaky` fails once, `slow` takes 1.5 s, `quiet` reports no progress."""
    if "fails" in command.prompt:
        raise PermanentError("lora-missing", "no such weights")
    if "shaky" in command.prompt and context.attempt == 1:
        raise TemporaryError("not yet", delay=0.1)
    if "slow" in command.prompt:
        await asyncio.sleep(1.5)
    for percent in () if "quiet" in command.prompt else (0, 25, 50, 75, 90):
        await context.report_progress(Progress(current_step=percent, total_steps=100, progress_percent=percent))
    done = await store_images(command, [solid_color_png(command, index) for index in range(command.count)], claims, context.tenant)
    return Transactional(done, partial(record_run, context.job_id)) if transactional else done


async def store_images(command: Image, images: Sequence[bytes], claims: ClaimStore, tenant: str | None, **facts: Any) -> ImageDone:
    """Store PNGs of the command's size; returns the result that describes them. `facts`: its optional fields."""
    seed, (width, height) = image_seed(command), image_size(command)
    size = {"width": width, "height": height}
    stored = [await claims.write(image, tenant=tenant, media_type="image/png", generated=True, **size) for image in images]
    guidance_scale = OWN_GUIDANCE_SCALE if command.guidance_scale is None else command.guidance_scale
    metadata = ImageMetadata(seed=seed, steps=command.steps or OWN_STEPS, guidance_scale=guidance_scale)
    return ImageDone(images=stored, metadata=metadata, seeds=[seed + index for index in range(command.count)], **facts)


def image_size(command: Image) -> tuple[int, int]:
    return command.width or OWN_SIDE, command.height or OWN_SIDE


def image_seed(command: Image) -> int:
    return 7 if command.seed is None else command.seed


def solid_color_png(command: Image, index: int) -> bytes:
    """A different colour for each image of an order."""
    color = hashlib.sha256(f"{command.prompt}{index or ''}".encode()).digest()[:3]
    with io.BytesIO() as file:
        Pillow.new("RGB", image_size(command), tuple(color)).save(file, "PNG")
        return file.getvalue()


async def record_run(job_id: str, connection: Connection) -> None:
    """Insert one row for each completed run, so that a second run would be visible."""
    await connection.execute("insert into atelier.painted (job_id) values ($1)", job_id)


@asynccontextmanager
async def open_fake_image_actor(resources: Resources) -> AsyncIterator[Handler]:
    yield partial(generate_images, claims=resources.claims, transactional=resources.database is not None)


FAKE_IMAGE_ACTOR = Actor(
    step=Step.IMAGE,
    command=Image,
    result=ImageDone,
    open=open_fake_image_actor,
    timeout_seconds=30,
    prefetch=10,
    schema="create schema if not exists atelier; create table if not exists atelier.painted (job_id text not null)",
)
