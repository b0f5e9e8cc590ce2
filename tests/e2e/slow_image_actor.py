"""A painter that takes its time and paints something to look at: a sky, a sun, hills. The prompt and the seed decide."""

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
from contracts.event import Progress
from contracts.image import Image, ImageDone, ImageMetadata
from contracts.wire import Step

STEP_SECONDS = 0.25
LONG_STEP_SECONDS = 25.0
SKY_COLORS = (("#f4c9a0", "#7a4f8f"), ("#bfe0e2", "#2f6f8f"), ("#f7e3b5", "#d9795d"), ("#c9d8f0", "#3a4a7a"))


def draw_landscape(prompt: str, seed: int, size: tuple[int, int]) -> bytes:
    chance = random.Random(hashlib.sha256(f"{prompt} {seed}".encode()).digest())
    low, high = (Pillow.new("RGB", size, colour) for colour in chance.choice(SKY_COLORS))
    picture = Pillow.composite(low, high, Pillow.linear_gradient("L").resize(size))
    draw, (width, height) = ImageDraw.Draw(picture), size
    sun, x, y = width * chance.uniform(0.06, 0.14), width * chance.uniform(0.2, 0.8), height * chance.uniform(0.15, 0.45)
    draw.ellipse((x - sun, y - sun, x + sun, y + sun), fill="#fff3d6")
    for depth in range(4):
        top, shade = height * (0.5 + depth * 0.12), 150 - depth * 36
        points = [(width * i / 12, top + chance.uniform(-0.08, 0.08) * height) for i in range(13)]
        draw.polygon([(0, height), *points, (width, height)], fill=(shade // 2, shade * 3 // 4, shade * 2 // 3))
    with io.BytesIO() as file:
        picture.filter(ImageFilter.SMOOTH_MORE).save(file, "PNG")
        return file.getvalue()


async def generate_images(command: Image, context: Context, *, claims: ClaimStore) -> ImageDone:
    """`fails` fails for good; `dries` takes its time in the middle."""
    if "fails" in command.prompt:
        raise PermanentError("prompt-refused", "the prompt asks for what nobody can draw: take the word `fails` out of it")
    seed = 7 if command.seed is None else command.seed
    size = (command.width, command.height)
    pictures = [draw_landscape(command.prompt, seed + i, size) for i in range(command.count)]
    for percent in (0, 20, 40, 60, 80):
        step = percent * command.steps // 100
        left = round((100 - percent) / 20 * STEP_SECONDS)
        await context.report_progress(
            Progress(current_step=step, total_steps=command.steps, progress_percent=percent, estimated_seconds=left)
        )
        await asyncio.sleep(LONG_STEP_SECONDS if percent == 40 and "dries" in command.prompt else STEP_SECONDS)
    images = [await claims.write(data, media_type="image/png", width=size[0], height=size[1]) for data in pictures]
    return ImageDone(
        images=images,
        metadata=ImageMetadata(seed=seed, steps=command.steps, guidance_scale=command.guidance_scale),
        seeds=[seed + i for i in range(command.count)],
        made_with={"model": "a painter", "scheduler": command.scheduler},
        compute_seconds=5 * STEP_SECONDS,
    )


@asynccontextmanager
async def open_slow_image_actor(tools: Resources) -> AsyncIterator[Handler]:
    yield partial(generate_images, claims=tools.claims)


SLOW_IMAGE_ACTOR = Actor(step=Step.IMAGE, command=Image, result=ImageDone, open=open_slow_image_actor, timeout_seconds=30, prefetch=4)
