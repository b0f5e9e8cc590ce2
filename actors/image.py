"""Image: draw an order's pictures with Stable Diffusion, in a process that owns the device.

Reads the prompt and its numbers, fetches the LoRA through the store, returns the pictures as claims, PNG, with how they were made.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.diffusion.progress import open_progress_reporter
from actors.engines.diffusion.requests import DiffusionRequest, DiffusionResult, LoraFile
from actors.engines.process.executor import ExecutionResult, Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.image import Image, ImageDone, ImageMetadata, Lora
from contracts.wire import Step

ENGINE_FACTORY = "actors.engines.diffusion.engine:open_engine"
DEFAULTS = ImageSettings()


@asynccontextmanager
async def open_image(resources: Resources) -> AsyncIterator[Handler]:
    """Start the model process. Orders may come before it is ready: they wait for it."""
    settings = ImageSettings()
    limits = {"admit": settings.max_concurrent_generations, "capacity": settings.max_rows}
    async with open_executor(
        EngineSpec(ENGINE_FACTORY, settings), ExecutorSettings(), set_unready=resources.set_unready, **limits
    ) as executor:
        resources.register_engine(executor)
        yield partial(image, claims=resources.claims, executor=executor, loras=LoraFileCache(resources.claims, settings))


ACTOR = Actor(
    step=Step.IMAGE,
    command=Image,
    result=ImageDone,
    open=open_image,
    timeout_seconds=DEFAULTS.order_seconds,
    prefetch=DEFAULTS.max_concurrent_generations,
    description="Draws the pictures of an order with Stable Diffusion.",
)


async def image(command: Image, context: Context, *, claims: ClaimStore, executor: Executor, loras: LoraFileCache) -> ImageDone:
    """Cancelling it takes the order, and no other, from the device at the next step."""
    lora = await fetch_lora(command.lora, loras)
    work = build_engine_request(command, context, lora)
    async with open_progress_reporter(command.steps, context.report_progress) as on_step:
        outcome = await executor.run(
            work, tenant=context.tenant or "", weight=command.count, deadline=context.deadline, on_progress=on_step
        )
    images = [
        await claims.write(picture, media_type="image/png", width=command.width, height=command.height) for picture in outcome.outputs
    ]  # fmt: skip
    done = build_result(command, work, outcome)
    return done.model_copy(update={"images": images, "lora_missing": command.lora is not None and lora is None})


async def fetch_lora(lora: Lora | None, loras: LoraFileCache) -> LoraFile | None:
    """None: the order wants none, or goes on without it because it is missing and not required."""
    if lora is None:
        return None
    try:
        return await loras.fetch(lora)
    except PermanentError as error:
        if error.code == "lora-missing" and not lora.required:
            return None
        raise


def build_engine_request(command: Image, context: Context, lora: LoraFile | None) -> DiffusionRequest:
    return DiffusionRequest(
        prompt=command.prompt,
        negative_prompt=command.negative_prompt,
        seed=derive_seed(context.message_id) if command.seed is None else command.seed,
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
        png_metadata={"job": context.job_id},
    )


def derive_seed(message_id: str) -> int:
    """Any number will do, but a message that is delivered twice gets the same pictures twice."""
    return int.from_bytes(hashlib.sha256(message_id.encode()).digest()[:4])


def build_result(command: Image, work: DiffusionRequest, outcome: ExecutionResult) -> ImageDone:
    made: DiffusionResult = outcome.result
    return ImageDone(
        images=[],
        metadata=ImageMetadata(seed=work.seed, steps=command.steps, guidance_scale=command.guidance_scale),
        seeds=list(made.seeds),
        made_with=made.png_metadata,
        flagged=list(made.flagged),
        rungs=list(made.oom_fallbacks),
        largest_batch=made.largest_batch,
        queued_seconds=round(outcome.queued_seconds, 3),
        compute_seconds=round(outcome.compute_seconds, 3),
    )
