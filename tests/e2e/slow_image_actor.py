"""An image actor without a model: draws a landscape that depends on prompt and seed, slowly enough to observe its progress.

An edit keeps the pixels of its picture where the mask is black, and its LoRAs are in the result.
"""

import asyncio
import hashlib
import io
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter

from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from contracts.event import Progress
from contracts.image import Image, ImageDone
from contracts.wire import Step
from tests.support.fake_image_actor import OWN_STEPS, image_seed, image_size, store_images

STEP_SECONDS = 0.25
LONG_STEP_SECONDS = 25.0
SKY_COLORS = (("#f4c9a0", "#7a4f8f"), ("#bfe0e2", "#2f6f8f"), ("#f7e3b5", "#d9795d"), ("#c9d8f0", "#3a4a7a"))


def draw_landscape(prompt: str, seed: int, size: tuple[int, int]) -> bytes:
    rng = random.Random(hashlib.sha256(f"{prompt} {seed}".encode()).digest())
    lower_sky, upper_sky = (Pillow.new("RGB", size, colour) for colour in rng.choice(SKY_COLORS))
    picture = Pillow.composite(lower_sky, upper_sky, Pillow.linear_gradient("L").resize(size))
    draw, (width, height) = ImageDraw.Draw(picture), size
    radius, x, y = width * rng.uniform(0.06, 0.14), width * rng.uniform(0.2, 0.8), height * rng.uniform(0.15, 0.45)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="#fff3d6")
    for depth in range(4):
        top, shade = height * (0.5 + depth * 0.12), 150 - depth * 36
        points = [(width * i / 12, top + rng.uniform(-0.08, 0.08) * height) for i in range(13)]
        draw.polygon([(0, height), *points, (width, height)], fill=(shade // 2, shade * 3 // 4, shade * 2 // 3))
    with io.BytesIO() as file:
        picture.filter(ImageFilter.SMOOTH_MORE).save(file, "PNG")
        return file.getvalue()


def keep_unmasked(picture: bytes, source: Pillow.Image, mask: Pillow.Image) -> bytes:
    """The PNG, with the pixels of `source` where `mask` is black."""
    with Pillow.open(io.BytesIO(picture)) as drawn, io.BytesIO() as file:
        Pillow.composite(drawn, source, mask.convert("L")).save(file, "PNG")
        return file.getvalue()


async def read_picture(claim: Claim, context: Context, claims: ClaimStore) -> Pillow.Image:
    return Pillow.open(io.BytesIO(await claims.read(claim, tenant=context.tenant))).convert("RGB")


async def generate_images(command: Image, context: Context, *, claims: ClaimStore) -> ImageDone:
    """A prompt with `fails` raises PermanentError; with `dries` one progress step takes LONG_STEP_SECONDS."""
    if "fails" in command.prompt:
        raise PermanentError("prompt-refused", "the prompt has the word `fails`, which this actor rejects")
    seed, steps = image_seed(command), command.steps or OWN_STEPS
    source = await read_picture(command.edit.image, context, claims) if command.edit else None
    mask = await read_picture(command.edit.mask, context, claims) if command.edit and command.edit.mask else None
    size = source.size if source else image_size(command)
    pictures = [draw_landscape(command.prompt, seed + index, size) for index in range(command.count)]
    if source and mask:
        pictures = [keep_unmasked(picture, source, mask) for picture in pictures]
    for percent in (0, 20, 40, 60, 80):
        step = percent * steps // 100
        remaining_seconds = round((100 - percent) / 20 * STEP_SECONDS)
        await context.report_progress(
            Progress(current_step=step, total_steps=steps, progress_percent=percent, estimated_seconds=remaining_seconds)
        )
        await asyncio.sleep(LONG_STEP_SECONDS if percent == 40 and "dries" in command.prompt else STEP_SECONDS)
    loras = " ".join(f"{lora.name or lora.uri}:{lora.scale:g}" for lora in command.all_loras)
    made_with = {"model": "landscape", "scheduler": command.scheduler or "own"} | ({"loras": loras} if loras else {})
    command = command.model_copy(update={"width": size[0], "height": size[1]})
    return await store_images(command, pictures, claims, context.tenant, made_with=made_with, compute_seconds=5 * STEP_SECONDS)


@asynccontextmanager
async def open_slow_image_actor(resources: Resources) -> AsyncIterator[Handler]:
    yield partial(generate_images, claims=resources.claims)


SLOW_IMAGE_ACTOR = Actor(step=Step.IMAGE, command=Image, result=ImageDone, open=open_slow_image_actor, timeout_seconds=30, prefetch=4)
