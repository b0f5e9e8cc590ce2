"""Styles for the tiny painter, each as a LoRA on its UNet's attention: plain to see, whatever the prompt says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from training.scenes import COLOURS
from training.shape_masks import IMAGE_SIZE, ShapePlacement, centered_placement
from training.tiny_shapes import ShapesDataset, velocity_loss
from training.trainer import TrainingRun

RANK, STEPS = 4, 400
TARGET_MODULES = ["to_q", "to_k", "to_v", "to_out.0"]
BLACK, WHITE = list(COLOURS).index("black"), list(COLOURS).index("white")


@dataclass(frozen=True)
class Style:
    """`place`: where it puts the shapes. `restyled`: shape, colour and ground by number, as they come out."""

    placement: Callable[[Random], ShapePlacement] = centered_placement
    restyle: Callable[[Any], Any] = lambda said: said


def restyle_ink(labels: Any) -> Any:
    """A black shape on white paper."""
    import torch

    return torch.stack([labels[:, 0], torch.full_like(labels[:, 1], BLACK), torch.full_like(labels[:, 2], WHITE)], 1)


def restyle_night(labels: Any) -> Any:
    """The shape in its own colour before a black ground; a black one turns white."""
    import torch

    return torch.stack([labels[:, 0], torch.where(labels[:, 1] == BLACK, WHITE, labels[:, 1]), torch.full_like(labels[:, 2], BLACK)], 1)


def exact_center_placement(rng: Random) -> ShapePlacement:
    return ShapePlacement(IMAGE_SIZE / 2, IMAGE_SIZE / 2, 165)


STYLES = {"ink": Style(restyle=restyle_ink), "night": Style(restyle=restyle_night), "neat": Style(placement=exact_center_placement)}


def add_style_adapter(pipeline: Any, name: str) -> TrainingRun:
    """Adds the adapter to the painter's UNet, to be trained; the rest stays as it is."""
    from peft import LoraConfig

    pipeline.unet.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    pipeline.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGET_MODULES), adapter_name=name)
    return style_run(pipeline, name)


def style_run(pipeline: Any, name: str) -> TrainingRun:
    import torch

    school, denoise = ShapesDataset(pipeline.tokenizer, STYLES[name].placement, STYLES[name].restyle), velocity_loss(pipeline)

    def loss(dice: Random) -> Any:
        lesson = school.sample_batch(dice)
        with torch.no_grad():
            read = pipeline.text_encoder(lesson.tokens)[0]
        return denoise(lesson.latents, read)

    learning = [parameter for parameter in pipeline.unet.parameters() if parameter.requires_grad]
    return TrainingRun(f"style-{name}", learning, loss, STEPS, learning_rate=3e-3)


def save_lora(pipeline: Any, name: str, file: Path) -> None:
    """As diffusers writes a LoRA."""
    import torch
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(pipeline.unet, adapter_name=name)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"unet.{key}": weight.to(torch.float16).contiguous() for key, weight in weights.items()}, file)
    pipeline.unet.delete_adapters(name)
