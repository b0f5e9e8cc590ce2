"""What a Stable Diffusion checkpoint lacks or says wrongly, found when it is loaded and before any order is drawn with it.

One small picture goes through the whole path: text encoder, UNet, scheduler and VAE.
"""

import json
from pathlib import Path
from typing import Any

from actors.engines.diffusion.decode import PictureNotFinite, decode_latents, latent_size
from actors.engines.diffusion.schedulers import build_scheduler
from actors.engines.process.model_cache import describe_missing

SIDE = 64
"""Pixels of the small picture."""
OTHER_FORMATS = (".safetensors", ".ckpt", ".pt", ".bin")
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")


def check_folder(name: str, folder: Path | None) -> None:
    """Raises ValueError for a file, and for a pipeline of another kind."""
    if folder is None:
        if name.endswith(OTHER_FORMATS):
            raise ValueError(
                "it is one file; convert it to a folder with StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)"
            )
        return
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{index} does not exist: the folder is not in the format of diffusers")
    try:
        content = json.loads(index.read_text())
        kind, missing = str(content.get("_class_name")), [part for part in PARTS if not (content.get(part) or [None])[0]]
    except (ValueError, AttributeError, TypeError, LookupError):
        raise ValueError(f"{index} is not that of a pipeline") from None
    if missing or "text_encoder_2" in content or "XL" in kind:
        lack = f" without {', '.join(missing)}" if missing else ""
        raise ValueError(f"it is a {kind}{lack} (model_index.json); this engine draws with Stable Diffusion 1 and 2")


def check_parts(pipeline: Any) -> None:
    """Whether the parts of a pipeline are of one model. Sets the tokenizer's limit where its file lacks it. Raises ValueError."""
    for part in PARTS:
        if getattr(pipeline, part, None) is None:
            raise ValueError(f"it has no {part}: model_index.json must name one, and the folder {part} must have it")
        if lacking := [key for key, tensor in part_tensors(pipeline, part) if tensor.is_meta]:
            raise ValueError(describe_missing(f"the folder {part}", lacking))
    tokenizer, encoder, unet, vae = pipeline.tokenizer, pipeline.text_encoder, pipeline.unet.config, pipeline.vae.config
    if len(tokenizer) > encoder.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the text encoder {encoder.config.vocab_size} (vocab_size in "
            "text_encoder/config.json): they are of different models"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    width, read_width = encoder.config.hidden_size, unet.cross_attention_dim
    if isinstance(read_width, int) and width != read_width and not unet.get("encoder_hid_dim"):
        raise ValueError(
            f"the text encoder gives {width} values a token, the UNet reads {read_width} (cross_attention_dim in "
            "unet/config.json): they are of different models"
        )
    if unet.in_channels != vae.latent_channels or unet.out_channels != vae.latent_channels:
        raise ValueError(
            f"the UNet reads {unet.in_channels} channels and gives {unet.out_channels}, the VAE has {vae.latent_channels} "
            "(latent_channels in vae/config.json); a checkpoint for inpainting cannot draw from a prompt alone"
        )
    if not isinstance(vae.scaling_factor, int | float) or not vae.scaling_factor:
        raise ValueError(f"scaling_factor in vae/config.json is {vae.scaling_factor!r}; it is 0.18215 for Stable Diffusion 1 and 2")


def part_tensors(pipeline: Any, part: str) -> list[tuple[str, Any]]:
    """The weights of a part, by name; none of one that is no module. What no file has stays on torch's device `meta`."""
    module = getattr(pipeline, part)
    return [*module.named_parameters(), *module.named_buffers()] if hasattr(module, "named_parameters") else []


def check_schedule(folder: Path | None) -> None:
    """Raises ValueError for a noise schedule that its file does not name: the default of diffusers is that of no checkpoint."""
    file = folder / "scheduler" / "scheduler_config.json" if folder else None
    if file is None or not file.is_file():
        return
    fields = json.loads(file.read_text())
    if not isinstance(fields, dict) or not (fields.get("beta_schedule") or fields.get("trained_betas")):
        raise ValueError(f"{file} has no beta_schedule: take the file of the checkpoint from which this one was made")


def draw_test_picture(pipeline: Any, scheduler_name: str = "dpm++", *, full_size: bool = False) -> None:
    """One step of one picture, small or of the model's own size. Raises ValueError with the part whose output is no number."""
    import torch

    device, dtype = pipeline.device, pipeline.unet.dtype
    side = max(SIDE, int(pipeline.unet.config.sample_size or 0) * pipeline.vae_scale_factor) if full_size else SIDE
    with torch.inference_mode():
        embeds, _ = pipeline.encode_prompt("a photo", device, 1, False)
        check_finite(embeds, "text encoder", dtype)
        scheduler = build_scheduler(scheduler_name, pipeline.scheduler.config)
        scheduler.set_timesteps(2, device=device)
        shape = (1, pipeline.unet.config.in_channels, *latent_size(pipeline, side, side))
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype).to(device) * scheduler.init_noise_sigma
        step = scheduler.timesteps[0]
        noise = pipeline.unet(scheduler.scale_model_input(latents, step), step, encoder_hidden_states=embeds, return_dict=False)[0]
        check_finite(noise, "UNet", dtype)
        latents = scheduler.step(noise, step, latents, return_dict=False)[0]
        check_finite(latents, "scheduler", dtype)
    try:
        decode_latents(pipeline, latents)
    except PictureNotFinite as error:
        raise ValueError(str(error)) from None


def check_finite(tensor: Any, part: str, dtype: Any) -> None:
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"the output of its {part} is not finite as {str(dtype).removeprefix('torch.')}: try another IMAGE_DTYPE")
