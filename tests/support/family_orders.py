"""Orders of every kind for every family of image models: text, LoRA mixes, pictures, masks and ControlNets, that differ in all else."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file

from actors.engines.diffusion.requests import ControlSource, DiffusionRequest, EditSource, InputPicture, LoraFile

NOISE_SCHEDULERS = ("euler", "dpm++", "euler-a", "ddim", "pndm", "lms", "unipc")
FLOW_SCHEDULERS = ("euler",)
STRENGTH = 0.3
"""Scale of LoRA weights: visible in the picture, yet so small that rounding does not grow to a visible difference over the steps."""


@dataclass(frozen=True)
class TinyFamily:
    """A checkpoint of `tiny_families` and what can be ordered of it. `lora_parts`: what its LoRAs change, the denoiser first."""

    checkpoint: str
    schedulers: tuple[str, ...] = FLOW_SCHEDULERS
    lora_parts: tuple[str, ...] = ("transformer",)
    unguided: float = 1.0
    """A guidance scale at which its stock pipeline has no negative half."""
    reads_guidance: bool = True
    true_cfg_scale: float | None = None
    """Of its orders with a negative prompt, where guidance is distilled."""
    controlnet: str = ""
    edits: bool = True
    inpaints_only: bool = False


CLIP = ("text_encoder",)
TINY = {
    family.checkpoint: family
    for family in (
        TinyFamily("tiny-sd15", NOISE_SCHEDULERS, ("unet", *CLIP), controlnet="tiny-sd15-controlnet"),
        TinyFamily("tiny-sd2", NOISE_SCHEDULERS, ("unet", *CLIP)),
        TinyFamily("tiny-sdxl", NOISE_SCHEDULERS, ("unet", *CLIP, "text_encoder_2"), controlnet="tiny-sdxl-controlnet"),
        TinyFamily("tiny-sd3", lora_parts=("transformer", *CLIP, "text_encoder_2")),
        TinyFamily("tiny-flux", lora_parts=("transformer", *CLIP), true_cfg_scale=2.5),
        TinyFamily("tiny-flux-schnell", true_cfg_scale=2.5, reads_guidance=False),
        TinyFamily("tiny-qwen-image"),
        TinyFamily("tiny-z-image", unguided=0.0),
        TinyFamily("tiny-pixart-sigma", NOISE_SCHEDULERS, (), edits=False),
        TinyFamily("tiny-sd15-inpaint", NOISE_SCHEDULERS, ("unet", *CLIP), inpaints_only=True),
        TinyFamily("tiny-sdxl-inpaint", NOISE_SCHEDULERS, ("unet", *CLIP, "text_encoder_2"), inpaints_only=True),
    )
}


@dataclass(frozen=True)
class Arrival:
    """An order, and the tick of the engine before which it arrives."""

    tick: int
    request: DiffusionRequest


def text_orders(family: TinyFamily) -> dict[str, Arrival]:
    """Five orders that differ in seed, steps, guidance, prompt and scheduler; one is unguided, two join late, one has another size."""
    orders = {
        "a": Arrival(0, make_request(1, "a cat", 4, 4.0)),
        "b": Arrival(0, make_request(2, "a long prompt about a red house by the sea, at night", 7, family.unguided)),
        "c": Arrival(2, make_request(3, "a dog in the rain", 5, 2.5, negative_prompt="blurry, ugly", true_cfg_scale=family.true_cfg_scale)),
        "d": Arrival(3, make_request(4, "one", 3, 6.0)),
        "e": Arrival(1, make_request(5, "a wide picture", 4, 3.0, width=96)),
    }
    schedulers = dict(zip(orders, family.schedulers * len(orders), strict=False))
    unread = {} if family.reads_guidance else {"guidance_scale": None}
    return {name: change(arrival, scheduler=schedulers[name], **unread) for name, arrival in orders.items()}


def make_request(seed: int, prompt: str, steps: int, guidance_scale: float, **changes: Any) -> DiffusionRequest:
    size = {"width": 64, "height": 64}
    return DiffusionRequest(**{"prompt": prompt, "seed": seed, "steps": steps, "guidance_scale": guidance_scale, **size, **changes})


def lora_orders(family: TinyFamily, loras: dict[str, LoraFile]) -> dict[str, Arrival]:
    """Rows with one, two and three adapters, with one adapter at two scales, and one without any."""
    scales = {"a": {"1": 0.8, "2": 0.5}, "b": {}, "c": {"2": 1.0}, "d": {"3": 0.7, "1": -0.4, "2": 0.3}, "e": {"1": 0.4, "3": 1.0}}
    return {
        name: change(arrival, loras=tuple(replace(loras[lora], scale=scale) for lora, scale in scales[name].items()))
        for name, arrival in text_orders(family).items()
    }


def picture_orders(family: TinyFamily) -> dict[str, Arrival]:
    """Orders with a picture at three strengths, beside orders of text alone."""
    sources = {"b": 0.8, "c": 0.5, "e": 0.95}
    return {
        name: change(arrival, edit=edit_source(arrival.request, strength=sources[name])) if name in sources else arrival
        for name, arrival in text_orders(family).items()
    }


def mask_orders(family: TinyFamily) -> dict[str, Arrival]:
    """Orders with a mask, at three strengths, one of them 1, one with a picture and a mask that are larger than the order; beside orders
    of text alone where the checkpoint draws them.
    """
    sources: dict[str, dict[str, float]] = {"b": {"strength": 0.8, "enlarged": 1.75}, "c": {"strength": 0.5}, "e": {"strength": 1.0}}
    return {
        name: change(arrival, edit=edit_source(arrival.request, masked=True, **sources[name])) if name in sources else arrival
        for name, arrival in text_orders(family).items()
        if name in sources or not family.inpaints_only
    }


def control_orders(family: TinyFamily) -> dict[str, Arrival]:
    """Orders that follow a picture, at two scales, beside orders of text alone."""
    scales = {"a": 1.0, "c": 0.6, "e": 1.3}
    return {
        name: change(arrival, control=ControlSource(random_picture(arrival.request, "RGB"), family.controlnet, scales[name]))
        if name in scales
        else arrival
        for name, arrival in text_orders(family).items()
    }


def mixed_orders(family: TinyFamily, loras: dict[str, LoraFile]) -> dict[str, Arrival]:
    """A ControlNet, a picture, a mask and LoRAs, each in other rows of the same calls."""
    orders = lora_orders(family, loras)
    if family.controlnet:
        orders["a"] = control_orders(family)["a"]
    if family.edits:
        orders["b"] = picture_orders(family)["b"]
        orders["c"] = change(orders["c"], edit=edit_source(orders["c"].request, masked=True, strength=0.7))
    return orders


CASES: dict[str, Callable[[TinyFamily, dict[str, LoraFile]], dict[str, Arrival]]] = {
    "text": lambda family, _: text_orders(family),
    "lora": lora_orders,
    "picture": lambda family, _: picture_orders(family),
    "mask": lambda family, _: mask_orders(family),
    "control": lambda family, _: control_orders(family),
    "mixed": mixed_orders,
}


def different_orders(orders: Mapping[str, Arrival]) -> dict[str, Arrival]:
    """The same orders, each without its adapters or its ControlNet, or with another prompt where it has neither."""
    return {name: change(arrival, **difference(arrival.request)) for name, arrival in orders.items()}


def difference(request: DiffusionRequest) -> dict[str, Any]:
    if request.loras:
        return {"loras": ()}
    return {"control": None} if request.control else {"prompt": "something else"}


def change(arrival: Arrival, **changes: Any) -> Arrival:
    return replace(arrival, request=replace(arrival.request, **changes))


def edit_source(request: DiffusionRequest, *, masked: bool = False, strength: float, enlarged: float = 1.0) -> EditSource:
    picture, mask = random_picture(request, "RGB", enlarged), random_picture(request, "L", enlarged)
    return EditSource(picture, mask if masked else None, strength)


def random_picture(request: DiffusionRequest, mode: Literal["RGB", "L"], enlarged: float = 1.0) -> InputPicture:
    """Soft blots of the size of an order, or `enlarged`, and of its seed: of colours, or (`L`) a mask of black and white."""
    size = (8, 8, 3) if mode == "RGB" else (8, 8)
    blots = np.random.default_rng(request.seed).integers(0, 256, size, dtype=np.uint8)
    width, height = (round(enlarged * (side or 0)) for side in (request.width, request.height))
    image = Pillow.fromarray(blots).resize((width, height), Pillow.Resampling.BILINEAR)
    if mode == "L":
        image = image.point(lambda value: 255 * (value > 128))
    return InputPicture(mode, image.width, image.height, image.tobytes())


def write_family_loras(family: TinyFamily, pipeline: Any, folder: Path) -> dict[str, LoraFile]:
    """Three LoRAs of ranks 2, 3 and 4 on every linear layer of the denoiser's blocks; the third also on the text encoders."""
    loras = {}
    for number in (1, 2, 3):
        tensors, generator = {}, torch.Generator().manual_seed(number)
        for part in family.lora_parts[: None if number == 3 else 1]:
            for name, layer in linear_layers(getattr(pipeline, part)):
                tensors |= lora_tensors(f"{part}.{name}", layer, number + 1, generator)
        path = folder / f"{family.checkpoint}-{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
        loras[str(number)] = LoraFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), 1.0, path.name)
    return loras


def linear_layers(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Linear]]:
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and any(word in name for word in ("block", "layers.", "refiner", "self_attn")):
            yield name, layer


def lora_tensors(name: str, layer: torch.nn.Linear, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    a = torch.randn((rank, layer.in_features), generator=generator) / layer.in_features**0.5
    b = STRENGTH * torch.randn((layer.out_features, rank), generator=generator)
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
