"""Styles of tiny-shapes, each a LoRA on the attention of its UNet, visible with every prompt."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from actors.engines.diffusion.lora.strength import HEADER_KEY
from training.scenes import COLOURS
from training.shape_masks import IMAGE_SIZE, ShapePlacement, centered_placement
from training.tiny_shapes import ShapesDataset, velocity_loss
from training.trainer import TrainingRun

RANK, STEPS = 4, 400
TARGET_MODULES = ["to_q", "to_k", "to_v", "to_out.0"]
BLACK, WHITE = list(COLOURS).index("black"), list(COLOURS).index("white")


@dataclass(frozen=True)
class Style:
    """`placement`: the position of the shapes. `restyle`: maps labels (batch × shape, colour, ground) to those of the style."""

    placement: Callable[[Random], ShapePlacement] = centered_placement
    restyle: Callable[[Any], Any] = lambda labels: labels


def restyle_ink(labels: Any) -> Any:
    """A black shape on white."""
    import torch

    return torch.stack([labels[:, 0], torch.full_like(labels[:, 1], BLACK), torch.full_like(labels[:, 2], WHITE)], 1)


def restyle_night(labels: Any) -> Any:
    """The shape in its own colour on black; a black one becomes white."""
    import torch

    return torch.stack([labels[:, 0], torch.where(labels[:, 1] == BLACK, WHITE, labels[:, 1]), torch.full_like(labels[:, 2], BLACK)], 1)


def exact_center_placement(rng: Random) -> ShapePlacement:
    return ShapePlacement(IMAGE_SIZE / 2, IMAGE_SIZE / 2, 165)


STYLES = {"ink": Style(restyle=restyle_ink), "night": Style(restyle=restyle_night), "neat": Style(placement=exact_center_placement)}


def add_style_adapter(pipeline: Any, name: str) -> TrainingRun:
    """Adds the adapter to the UNet, to be trained; all other weights are frozen."""
    from peft import LoraConfig

    pipeline.unet.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    pipeline.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGET_MODULES), adapter_name=name)
    return style_run(pipeline, name)


def style_run(pipeline: Any, name: str) -> TrainingRun:
    import torch

    dataset, denoise = ShapesDataset(pipeline.tokenizer, STYLES[name].placement, STYLES[name].restyle), velocity_loss(pipeline)

    def loss(rng: Random) -> Any:
        batch = dataset.sample_batch(rng)
        with torch.no_grad():
            text_states = pipeline.text_encoder(batch.tokens)[0]
        return denoise(batch.latents, text_states)

    trainable = [parameter for parameter in pipeline.unet.parameters() if parameter.requires_grad]
    return TrainingRun(f"style-{name}", trainable, loss, STEPS, learning_rate=3e-3)


def save_lora(pipeline: Any, name: str, file: Path) -> None:
    """Write the adapter in the format of diffusers, its configuration in the header, and remove it from the UNet."""
    import torch
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(pipeline.unet, adapter_name=name)
    file.parent.mkdir(parents=True, exist_ok=True)
    config = {"unet.r": RANK, "unet.lora_alpha": RANK, "unet.target_modules": TARGET_MODULES}
    header = {"format": "pt", HEADER_KEY: json.dumps(config)}
    save_file({f"unet.{key}": weight.to(torch.float16).contiguous() for key, weight in weights.items()}, file, header)
    pipeline.unet.delete_adapters(name)
