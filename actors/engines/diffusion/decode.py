"""Decodes the latents of an order into picture files. Called in the thread of the VAE."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.oom import OomFallbacks, enable_vae_slicing
from actors.engines.diffusion.picture_files import EXTENSIONS, write_picture
from actors.engines.diffusion.requests import DiffusionResult, ResolvedRequest
from actors.engines.process.protocol import Failed, Finished

MASK_THRESHOLD = 128
"""Values of a mask from here on are drawn anew."""


class PictureNotFinite(Exception):
    """The latents or the decoded picture have values that are no numbers: drawn as they are, they would be black."""


@dataclass(eq=False)
class SteppedOrder:
    """One order whose steps are done. `latents`: one tensor per image, in the order of the seeds; `metadata` is for all images."""

    request_id: int
    request: ResolvedRequest
    family: Family
    latents: list[Any]
    metadata: dict[str, str]
    largest_batch: int
    oom_fallbacks: tuple[str, ...]
    applied_fallbacks: set[str]


def decode_order(order: SteppedOrder, oom: OomFallbacks, shm_dir: Path) -> Finished | Failed:
    """The files, or that the picture is not finite. Raises MemoryExhausted, and what the VAE raises; then no file is left."""
    request, files = order.request, []
    flags: list[bool] = []
    try:
        for index, latents in enumerate(order.latents):
            check_latents(order, latents)
            pixels = oom.run_with_fallbacks(
                partial(decode_latents, order.family, request, latents),
                partial(enable_vae_slicing, order.family.pipeline, order.applied_fallbacks),
            )
            pixels = keep_unmasked(order.family, request, pixels)
            flags += safety_flags(order.family, pixels)
            files.append(shm_dir / f"{order.request_id}-{index}.{EXTENSIONS[request.output_format]}")
            metadata = {**order.metadata, "seed": str(request.seed + index)}
            write_picture(files[-1], pixels, metadata, request.output_format, request.quality)
    except PictureNotFinite as error:
        remove_files(files)
        return Failed(order.request_id, "permanent" if request.loras else "temporary", "picture-not-finite", str(error))
    except BaseException:
        remove_files(files)
        raise
    return Finished(order.request_id, build_result(order, flags), tuple(files))


def build_result(order: SteppedOrder, flags: list[bool]) -> DiffusionResult:
    request = order.request
    return DiffusionResult(
        seeds=tuple(request.seed + index for index in range(request.count)),
        metadata=order.metadata,
        oom_fallbacks=(*order.oom_fallbacks, *sorted(order.applied_fallbacks)),
        largest_batch=order.largest_batch,
        family=order.family.name,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        flagged=tuple(flags),
    )


def check_latents(order: SteppedOrder, latents: Any) -> None:
    import torch

    if not bool(torch.isfinite(latents).all()):
        cause = "its LoRA is too strong, or another dtype is needed" if order.request.loras else "try another dtype"
        raise PictureNotFinite(f"the latents are not finite: {cause} (IMAGE_DTYPE)")


def decode_latents(family: Family, request: ResolvedRequest, latents: Any) -> Any:
    """The image as height × width × 3 bytes, rounded as in the stock pipelines. Raises PictureNotFinite."""
    import torch

    image = family.decode(request, latents)
    if not bool(torch.isfinite(image).all()):
        dtype = str(image.dtype).removeprefix("torch.")
        raise PictureNotFinite(f"the output of the VAE is not finite as {dtype}: try another dtype (IMAGE_DTYPE), such as float32")
    values = (image / 2 + 0.5).clamp(0, 1).float().cpu().numpy()
    return (values * 255).round().astype("uint8")[: request.height, : request.width]


def keep_unmasked(family: Family, request: ResolvedRequest, pixels: Any) -> Any:
    """`pixels` inside the mask of the order, and its own picture outside, byte by byte; the VAE changes what it decodes."""
    import numpy

    if not (request.edit and request.edit.mask):
        return pixels
    drawn = family.resized_picture(request, request.edit.mask) >= MASK_THRESHOLD
    return numpy.where(drawn[:, :, None], pixels, family.resized_picture(request, request.edit.image))


def safety_flags(family: Family, pixels: Any) -> list[bool]:
    """The safety checker's flag, if there is a checker. It gets a copy of the image, since it paints flagged images black."""
    checker = getattr(family.pipeline, "safety_checker", None)
    if checker is None:
        return []
    features = family.pipeline.feature_extractor(pixels, return_tensors="pt").to(family.device)
    _, flags = checker(images=pixels[None].copy(), clip_input=features.pixel_values.to(family.dtype))
    return [bool(flags[0])]


def remove_files(files: list[Path] | tuple[Path, ...]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
