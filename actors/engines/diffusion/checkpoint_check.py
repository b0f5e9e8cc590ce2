"""What a checkpoint lacks or says wrongly, found when it is loaded and before any order is drawn with it.

One small picture goes through the whole path: text encoders, denoiser, scheduler and VAE.
"""

import json
from pathlib import Path
from typing import Any

from actors.engines.diffusion.batching import DiffusionRow, make_step, scale_input
from actors.engines.diffusion.decode import PictureNotFinite, decode_latents
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.request_check import resolve_request
from actors.engines.diffusion.requests import DiffusionRequest, ResolvedRequest
from actors.engines.diffusion.row_start import noise_sigma
from actors.engines.process.failures import describe_error
from actors.engines.process.model_cache import describe_missing

SIDE = 64
"""Pixels of the small picture."""


def check_parts(family: Family) -> None:
    """Whether every part is there with all its weights, and all are of one model. Raises ValueError."""
    for part in (*family.parts, *family.optional_parts):
        if part in family.parts and getattr(family.pipeline, part, None) is None:
            raise ValueError(f"it has no {part}: model_index.json must name one, and the folder {part} must have it")
        if lacking := [key for key, tensor in part_tensors(family.pipeline, part) if tensor.is_meta]:
            raise ValueError(describe_missing(f"the folder {part}", lacking))
    check_configurations(family)


def check_configurations(family: Family) -> None:
    """Whether the configurations of the parts are of one model. Raises ValueError, also for a value of a wrong type."""
    try:
        family.check()
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        cause = f"{type(error).__name__}: {describe_error(error, 300)}"
        text = f"a value in the configuration of a part is missing or of a wrong type ({cause})"
        raise ValueError(f"{text}: take the files of the checkpoint's origin") from error


def part_tensors(pipeline: Any, part: str) -> list[tuple[str, Any]]:
    """The weights of a part, by name; none of one that is no module. What no file has stays on torch's device `meta`."""
    module = getattr(pipeline, part)
    return [*module.named_parameters(), *module.named_buffers()] if hasattr(module, "named_parameters") else []


def check_schedule(folder: Path | None) -> None:
    """Raises ValueError for a noise schedule that its file does not name: the default of diffusers is that of no checkpoint.

    Schedulers of flow matching have no betas.
    """
    file = folder / "scheduler" / "scheduler_config.json" if folder else None
    if file is None or not file.is_file():
        return
    fields = json.loads(file.read_text())
    if isinstance(fields, dict) and str(fields.get("_class_name")).startswith("FlowMatch"):
        return
    if not isinstance(fields, dict) or not (fields.get("beta_schedule") or fields.get("trained_betas")):
        raise ValueError(f"{file} has no beta_schedule: take the file of the checkpoint from which this one was made")


def draw_test_picture(family: Family, *, scheduler: str | None = None, full_size: bool = False) -> None:
    """One step of one picture, small or of the model's own size. Raises ValueError with the part whose output is no number."""
    import torch

    side = max(SIDE, family.own_side) if full_size else max(SIDE, family.vae_scale * family.patch)
    order = DiffusionRequest("a photo", seed=1, width=side, height=side, steps=2, guidance_scale=1.0, scheduler=scheduler)
    request = resolve_request(order, family, side)
    with torch.inference_mode():
        conditions = family.encode(request)[-1:]
        for tensor in conditions[0].values():
            check_finite(tensor, "text encoder", family)
        row = build_test_row(family, request, conditions)
        x, t = scale_input(row), row.timestep.reshape(1)
        prediction = family.guide(row, family.denoise(x, t, conditions, [row]))
        check_finite(prediction, "UNet" if family.denoiser_part == "unet" else "transformer", family)
        make_step(row, prediction)
        check_finite(row.latents, "scheduler", family)
        try:
            decode_latents(family, request, row.latents)
        except PictureNotFinite as error:
            raise ValueError(str(error)) from None


def build_test_row(family: Family, request: ResolvedRequest, conditions: list[Any]) -> DiffusionRow:
    """A row of noise; beside it a mask that draws all anew, where the denoiser reads one."""
    import torch

    generator = torch.Generator().manual_seed(request.seed)
    scheduler = family.build_schedule(request)
    noise = family.draw_noise(request, generator)
    latents = family.pack(noise) * noise_sigma(scheduler)
    row = DiffusionRow(0, 0, request, None, scheduler, scheduler.timesteps, generator, latents, conditions)
    if family.mask_beside:
        row.beside = torch.cat([torch.ones_like(noise[:, :1]), torch.zeros_like(noise)], dim=1)
    return row


def check_finite(tensor: Any, part: str, family: Family) -> None:
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        dtype = str(family.dtype).removeprefix("torch.")
        raise ValueError(f"the output of its {part} is not finite as {dtype}: try another IMAGE_DTYPE")
