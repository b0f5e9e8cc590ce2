"""Image: generates an order's pictures with Stable Diffusion, in a process that owns the device.

Reads the prompt and its parameters, and the LoRA from the store; returns the pictures as claims (PNG) with their metadata.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import structlog
from anyio import to_thread

from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.diffusion.progress import open_progress_reporter
from actors.engines.diffusion.requests import DiffusionRequest, DiffusionResult, LoraFile
from actors.engines.process.executor import ExecutionResult, Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from actors.imaging.fonts import FontFace, check_drawable, find_fonts
from actors.imaging.signature_asset import fetch_signature
from actors.settings import WatermarkSettings
from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.image import AlphaSource, Image, ImageDone, ImageMetadata, Lora
from contracts.wire import Step

log = structlog.get_logger()
ENGINE_FACTORY = "actors.engines.diffusion.engine:open_engine"


@asynccontextmanager
async def open_image(resources: Resources) -> AsyncIterator[Handler]:
    """Starts the model process. Commands that arrive before the model is loaded wait for it."""
    settings = ImageSettings()
    async with open_executor(
        EngineSpec(ENGINE_FACTORY, settings),
        ExecutorSettings(),
        max_in_flight=settings.max_concurrent_generations,
        capacity=settings.max_rows,
        set_unready=resources.set_unready,
    ) as executor:
        resources.register_engine(executor)
        loras, signatures = LoraFileCache(resources.claims, settings), WatermarkSettings()
        handle = partial(image, claims=resources.claims, executor=executor, loras=loras)
        yield partial(handle, signature_max_bytes=signatures.signature_max_bytes, fonts=find_fonts(signatures.fonts))


def build_actor() -> Actor:
    settings = ImageSettings()
    return Actor(
        step=Step.IMAGE,
        command=Image,
        result=ImageDone,
        open=open_image,
        timeout_seconds=settings.order_seconds,
        prefetch=settings.max_concurrent_generations,
        description="Generates the pictures of an order with Stable Diffusion.",
    )


async def image(
    command: Image,
    context: Context,
    *,
    claims: ClaimStore,
    executor: Executor,
    loras: LoraFileCache,
    signature_max_bytes: int,
    fonts: Sequence[FontFace] = (),
) -> ImageDone:
    """Cancellation removes this order, and no other, from the batch at the next denoising step.

    A LoRA or a signature that is missing, or a signature that cannot be drawn, is found before the order reaches the engine.
    """
    await fetch_signature(command.signature, context.tenant, claims, signature_max_bytes)
    if command.signature and not command.signature.image_uri:
        await to_thread.run_sync(check_drawable, command.signature.text or "", fonts)
    lora = await fetch_lora(command.lora, context.tenant, loras)
    request = build_engine_request(command, context, lora)
    async with open_progress_reporter(command.steps, context.report_progress) as on_step:
        execution = await executor.run(
            request, tenant=context.tenant or "", weight=command.count, deadline=context.deadline, on_progress=on_step
        )
    size = {"width": command.width, "height": command.height}
    images = [
        await claims.write(picture, tenant=context.tenant, media_type="image/png", generated=True, **size) for picture in execution.outputs
    ]
    result = build_result(command, request, execution)
    return result.model_copy(update={"images": images, "lora_missing": command.lora is not None and lora is None})


async def fetch_lora(lora: Lora | None, tenant: str | None, loras: LoraFileCache) -> LoraFile | None:
    """None when the command has no LoRA, or when it is missing and not required."""
    if lora is None:
        return None
    try:
        return await loras.fetch(lora, tenant)
    except PermanentError as error:
        if error.code != "lora-missing" or lora.required:
            raise
        log.warning("lora.skipped", reason=str(error))
        return None


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
    """A seed that is the same at every delivery of a message, so that a redelivery generates the same pictures."""
    return int.from_bytes(hashlib.sha256(message_id.encode()).digest()[:4])


def build_result(command: Image, request: DiffusionRequest, execution: ExecutionResult) -> ImageDone:
    result: DiffusionResult = execution.result
    return ImageDone(
        images=[],
        metadata=ImageMetadata(seed=request.seed, steps=command.steps, guidance_scale=command.guidance_scale),
        seeds=list(result.seeds),
        made_with=result.png_metadata,
        lora_alpha_from=cast("AlphaSource | None", result.png_metadata.get("lora_alpha_from")),
        flagged=list(result.flagged),
        prompt_tokens_left_out=result.prompt_tokens_left_out,
        negative_prompt_tokens_left_out=result.negative_prompt_tokens_left_out,
        rungs=list(result.oom_fallbacks),
        largest_batch=result.largest_batch,
        queued_seconds=round(execution.queued_seconds, 3),
        compute_seconds=round(execution.compute_seconds, 3),
    )
