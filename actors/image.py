"""Image: draws an order's pictures with a diffusion model, in a process that owns the device.

Reads the prompt and its parameters, the LoRAs, and the pictures to start from or to follow, by their claims; returns the pictures as
claims (PNG, JPEG or WebP) with their metadata.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from anyio import to_thread

from actors.engines.diffusion.input_pictures import PictureReader
from actors.engines.diffusion.lora.file_cache import LoraFileCache
from actors.engines.diffusion.lora.strength import least_certain
from actors.engines.diffusion.picture_files import MEDIA_TYPES
from actors.engines.diffusion.progress import open_progress_reporter
from actors.engines.diffusion.requests import ControlSource, DiffusionRequest, DiffusionResult, EditSource, LoraFile
from actors.engines.process.executor import ExecutionResult, Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from actors.imaging.fonts import FontFace, check_drawable, find_fonts
from actors.imaging.signature_asset import fetch_signature
from actors.settings import WatermarkSettings
from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError
from bus.observability.gen_ai import trace_model_call
from bus.storage.claim_store import ClaimStore
from contracts.image import Image, ImageDone, ImageMetadata, Lora
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
        sources = OrderSources(LoraFileCache(resources.claims, settings), PictureReader(resources.claims, settings))
        signatures = WatermarkSettings()
        handle = partial(image, claims=resources.claims, executor=executor, sources=sources)
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
        description="Draws the pictures of an order with a diffusion model.",
    )


@dataclass(frozen=True)
class OrderSources:
    """Where the files of an order come from."""

    loras: LoraFileCache
    pictures: PictureReader


@dataclass(frozen=True)
class OrderFiles:
    """The files of one order, fetched and checked."""

    loras: tuple[LoraFile, ...] = ()
    edit: EditSource | None = None
    control: ControlSource | None = None


async def image(
    command: Image,
    context: Context,
    *,
    claims: ClaimStore,
    executor: Executor,
    sources: OrderSources,
    signature_max_bytes: int,
    fonts: Sequence[FontFace] = (),
) -> ImageDone:
    """Cancellation removes this order, and no other, from the batch at the next denoising step.

    A LoRA, a picture or a signature that is missing, or a signature that cannot be drawn, is found before the order reaches the engine.
    """
    await fetch_signature(command.signature, context.tenant, claims, signature_max_bytes)
    if command.signature and not command.signature.image_uri:
        await to_thread.run_sync(check_drawable, command.signature.text or "", fonts)
    files = await fetch_files(command, context.tenant, sources)
    request = build_engine_request(command, context, files)
    async with open_progress_reporter(context.report_progress) as on_step:
        with trace_model_call("generate_content", "atelier", request.model, **span_attributes(request)) as call:
            execution = await executor.run(
                request, tenant=context.tenant or "", weight=command.count, deadline=context.deadline, on_progress=on_step
            )
            call.record(response_model=execution.result.metadata.get("model"), device_seconds=execution.device_seconds)
    result, media_type = build_result(request, execution), MEDIA_TYPES[command.output_format]
    size = {"width": execution.result.width, "height": execution.result.height}
    images = [
        await claims.write(picture, tenant=context.tenant, media_type=media_type, generated=True, **size) for picture in execution.outputs
    ]
    return result.model_copy(update={"images": images, "lora_missing": len(files.loras) < len(command.all_loras)})


async def fetch_files(command: Image, tenant: str | None, sources: OrderSources) -> OrderFiles:
    """Raises what `fetch_lora` and `PictureReader` raise."""
    edit = await sources.pictures.read_edit(command.edit, tenant)
    control = await sources.pictures.read_control(command.control, tenant)
    loras = [await fetch_lora(lora, tenant, sources.loras) for lora in command.all_loras]
    return OrderFiles(tuple(lora for lora in loras if lora), edit, control)


async def fetch_lora(lora: Lora, tenant: str | None, loras: LoraFileCache) -> LoraFile | None:
    """None when it is missing and not required."""
    try:
        return await loras.fetch(lora, tenant)
    except PermanentError as error:
        if error.code != "lora-missing" or lora.required:
            raise
        log.warning("lora.skipped", reason=str(error))
        return None


def build_engine_request(command: Image, context: Context, files: OrderFiles) -> DiffusionRequest:
    return DiffusionRequest(
        prompt=command.prompt,
        negative_prompt=command.negative_prompt,
        seed=derive_seed(context.message_id) if command.seed is None else command.seed,
        width=command.width,
        height=command.height,
        steps=command.steps,
        guidance_scale=command.guidance_scale,
        true_cfg_scale=command.true_cfg_scale,
        scheduler=command.scheduler,
        count=command.count,
        model=command.model or "",
        loras=files.loras,
        edit=files.edit,
        control=files.control,
        deterministic=command.deterministic,
        preview=command.preview,
        output_format=command.output_format,
        quality=command.quality,
        metadata={"job": context.job_id},
    )


def span_attributes(request: DiffusionRequest) -> dict[str, Any]:
    return {"output_type": "image", "seed": request.seed, "choice_count": request.count if request.count > 1 else None}


def derive_seed(message_id: str) -> int:
    """A seed that is the same at every delivery of a message, so that a redelivery generates the same pictures."""
    return int.from_bytes(hashlib.sha256(message_id.encode()).digest()[:4])


def build_result(request: DiffusionRequest, execution: ExecutionResult) -> ImageDone:
    """The result without its images."""
    result: DiffusionResult = execution.result
    sources = result.metadata.get("lora_alpha_from", "")
    return ImageDone(
        images=[],
        metadata=ImageMetadata(seed=request.seed, steps=result.steps, guidance_scale=result.guidance_scale),
        family=result.family,
        seeds=list(result.seeds),
        made_with=result.metadata,
        lora_alpha_from=least_certain(sources.split(",")) if sources else None,
        flagged=list(result.flagged),
        rungs=list(result.oom_fallbacks),
        largest_batch=result.largest_batch,
        queued_seconds=round(execution.queued_seconds, 3),
        compute_seconds=round(execution.compute_seconds, 3),
    )
