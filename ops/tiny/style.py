"""Styles for the tiny painter, each as a LoRA on its UNet's attention: plain to see, whatever the prompt says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ops.tiny.drawing import SIDE, Place, near_middle
from ops.tiny.painter import School, velocity_loss
from ops.tiny.scenes import COLOURS
from ops.tiny.training import Course

RANK, STEPS = 4, 400
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
BLACK, WHITE = list(COLOURS).index("black"), list(COLOURS).index("white")


@dataclass(frozen=True)
class Style:
    """`place`: where it puts the shapes. `restyled`: shape, colour and ground by number, as they come out."""

    place: Callable[[Random], Place] = near_middle
    restyled: Callable[[Any], Any] = lambda said: said


def ink(said: Any) -> Any:
    """A black shape on white paper."""
    import torch

    return torch.stack([said[:, 0], torch.full_like(said[:, 1], BLACK), torch.full_like(said[:, 2], WHITE)], 1)


def night(said: Any) -> Any:
    """The shape in its own colour before a black ground; a black one turns white."""
    import torch

    return torch.stack([said[:, 0], torch.where(said[:, 1] == BLACK, WHITE, said[:, 1]), torch.full_like(said[:, 2], BLACK)], 1)


def centred(dice: Random) -> Place:
    return Place(SIDE / 2, SIDE / 2, 165)


STYLES = {"ink": Style(restyled=ink), "night": Style(restyled=night), "neat": Style(place=centred)}


def learn(painter: Any, name: str) -> Course:
    """Adds the adapter to the painter's UNet, to be trained; the rest stays as it is."""
    from peft import LoraConfig

    painter.unet.requires_grad_(False)
    painter.text_encoder.requires_grad_(False)
    painter.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PROJECTIONS), adapter_name=name)
    return course(painter, name)


def course(painter: Any, name: str) -> Course:
    import torch

    school, denoise = School(painter.tokenizer, STYLES[name].place, STYLES[name].restyled), velocity_loss(painter)

    def loss(dice: Random) -> Any:
        lesson = school.lesson(dice)
        with torch.no_grad():
            read = painter.text_encoder(lesson.tokens)[0]
        return denoise(lesson.latents, read)

    learning = [parameter for parameter in painter.unet.parameters() if parameter.requires_grad]
    return Course(f"style-{name}", learning, loss, STEPS, rate=3e-3)


def write_style(painter: Any, name: str, file: Path) -> None:
    """As diffusers writes a LoRA."""
    import torch
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(painter.unet, adapter_name=name)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"unet.{key}": weight.to(torch.float16).contiguous() for key, weight in weights.items()}, file)
    painter.unet.delete_adapters(name)
