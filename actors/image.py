"""Image: draw an order's pictures with Stable Diffusion, in a process that owns the device.

Reads the prompt and its numbers, fetches the LoRA through the store, returns the pictures as claims, PNG, with how they were made.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from actors.engines.executor import Executor, Outcome, open_executor
from actors.engines.image_work import ImageMade, ImageWork, LoraFile
from actors.engines.lora_files import LoraFiles
from actors.engines.milestones import open_milestones
from actors.engines.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from bus.actor import Actor, Context, Handler, Tools
from bus.claims import ClaimStore
from bus.errors import PermanentError
from contracts.image import Image, ImageDone, ImageMetadata, Lora
from contracts.wire import Step

ENGINE = "actors.engines.diffusers_image:open_engine"
SETTINGS = ImageSettings()


@asynccontextmanager
async def open_image(tools: Tools) -> AsyncIterator[Handler]:
    """Start the model process. Orders may come before it is ready: they wait for it."""
    settings = ImageSettings()
    limits = {"admit": settings.max_concurrent_generations, "capacity": settings.max_rows}
    async with open_executor(EngineSpec(ENGINE, settings), ExecutorSettings(), unready=tools.unready, **limits) as executor:
        tools.show(executor)
        yield partial(image, claims=tools.claims, executor=executor, loras=LoraFiles(tools.claims, settings))


ACTOR = Actor(
    step=Step.IMAGE,
    command=Image,
    result=ImageDone,
    open=open_image,
    timeout_seconds=SETTINGS.order_seconds,
    prefetch=SETTINGS.max_concurrent_generations,
    description="Draws the pictures of an order with Stable Diffusion.",
)


async def image(command: Image, context: Context, *, claims: ClaimStore, executor: Executor, loras: LoraFiles) -> ImageDone:
    """Cancelling it takes the order, and no other, from the device at the next step."""
    lora = await fetch_lora(command.lora, loras)
    work = work_of(command, context, lora)
    async with open_milestones(command.steps, context.report) as on_step:
        outcome = await executor.run(work, tenant=context.tenant or "", weight=command.count, deadline=context.deadline, on_step=on_step)
    images = [
        await claims.write(picture, media_type="image/png", width=command.width, height=command.height) for picture in outcome.parcels
    ]  # fmt: skip
    done = done_of(command, work, outcome)
    return done.model_copy(update={"images": images, "lora_missing": command.lora is not None and lora is None})


async def fetch_lora(lora: Lora | None, loras: LoraFiles) -> LoraFile | None:
    """None: the order wants none, or goes on without it because it is missing and not required."""
    if lora is None:
        return None
    try:
        return await loras.fetch(lora)
    except PermanentError as error:
        if error.code == "lora-missing" and not lora.required:
            return None
        raise


def work_of(command: Image, context: Context, lora: LoraFile | None) -> ImageWork:
    return ImageWork(
        prompt=command.prompt,
        negative_prompt=command.negative_prompt,
        seed=drawn_seed(context.message_id) if command.seed is None else command.seed,
        width=command.width,
        height=command.height,
        steps=command.steps,
        guidance_scale=command.guidance_scale,
        scheduler=command.scheduler,
        count=command.count,
        model=command.model or "",
        lora=lora,
        deterministic=command.deterministic,
        preview=command.preview,
        texts={"job": context.job_id},
    )


def drawn_seed(message_id: str) -> int:
    """Any number will do, but a message that is delivered twice gets the same pictures twice."""
    return int.from_bytes(hashlib.sha256(message_id.encode()).digest()[:4])


def done_of(command: Image, work: ImageWork, outcome: Outcome) -> ImageDone:
    made: ImageMade = outcome.result
    return ImageDone(
        images=[],
        metadata=ImageMetadata(seed=work.seed, steps=command.steps, guidance_scale=command.guidance_scale),
        seeds=list(made.seeds),
        made_with=made.texts,
        flagged=list(made.flagged),
        rungs=list(made.rungs),
        largest_batch=made.largest_batch,
        queued_seconds=round(outcome.queued_seconds, 3),
        compute_seconds=round(outcome.compute_seconds, 3),
    )
