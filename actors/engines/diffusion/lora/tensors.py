"""A LoRA's tensors as pairs, layer by layer, whatever form the file has: diffusers, kohya, or PEFT's adapter folder."""

from dataclasses import dataclass
from typing import Any

from actors.engines.diffusion.lora.validation import invalid_lora
from actors.engines.diffusion.requests import LoraFile
from bus.errors import TemporaryError

COMPONENTS = ("unet", "text_encoder")


@dataclass(frozen=True)
class LoraPair:
    """One layer's change: `factor` · up · down. Linear: rank × in and out × rank; of a convolution both have two more axes."""

    down: Any
    up: Any
    scaling: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


def read_pairs(lora: LoraFile, pipeline: Any) -> dict[tuple[str, str], LoraPair]:
    """(part, layer) → pair, on the model's device and in its dtype. Raises PermanentError("lora-invalid") that says what does not fit."""
    import torch

    tensors = read_tensors(lora)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise invalid_lora(lora.origin, f"{name!r} holds values that are not finite")
    found = {}
    for part in COMPONENTS:
        layers = dict(getattr(pipeline, part).named_modules())
        for name, tensors_of_layer in group_by_layer(component_tensors(part, tensors, pipeline)).items():
            layer = find_layer(name, layers)
            found[part, layer] = build_pair(name, tensors_of_layer, layers.get(layer), lora.origin)
    if not found:
        raise invalid_lora(lora.origin, "none of its keys names a layer of this model")
    return found


def read_tensors(lora: LoraFile) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(lora.path)
    except FileNotFoundError:
        text = f"the LoRA {lora.origin} has left the cache on the disk: make IMAGE_LORA_CACHE_BYTES larger"
        raise TemporaryError(text, code="lora-gone") from None
    except (SafetensorError, OSError) as error:
        raise invalid_lora(lora.origin, str(error)) from None
    return {name.replace("base_model.model.", "unet.", 1).replace(".default.", "."): tensor for name, tensor in tensors.items()}


def component_tensors(component: str, tensors: dict[str, Any], pipeline: Any) -> dict[str, Any]:
    """The tensors and alphas of one part, named as PEFT names them: `<layer>.lora_A.weight`, `.lora_B.weight`, `.alpha`."""
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    plain_alphas = {name: float(tensor) for name, tensor in tensors.items() if name.startswith(COMPONENTS) and name.endswith(".alpha")}
    weights = {name: tensor for name, tensor in tensors.items() if name not in plain_alphas}
    converted, alphas = pipeline.lora_state_dict(weights, unet_config=pipeline.unet.config)
    everything = converted | (alphas or {}) | plain_alphas
    ours = {name.removeprefix(f"{component}."): value for name, value in everything.items() if name.startswith(f"{component}.")}
    if component == "unet":
        return dict(convert_unet_state_dict_to_peft(ours))
    return dict(convert_state_dict_to_peft(convert_state_dict_to_diffusers(ours))) if ours else {}


def group_by_layer(named: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Layer → `down`, `up`, `alpha`."""
    layers: dict[str, dict[str, Any]] = {}
    for name, value in named.items():
        kind = "alpha" if name.endswith(".alpha") else "down" if ".lora_A." in name else "up"
        layer = name.removesuffix(".alpha").partition(".lora_A.")[0].partition(".lora_B.")[0]
        layers.setdefault(layer, {})[kind] = value
    return layers


def find_layer(name: str, layers: dict[str, Any]) -> str:
    """The layer by the name that this version of the libraries gives it; the text encoder has had `text_model.` before it and has not."""
    candidates = (name, name.removeprefix("text_model."), f"text_model.{name}", name.replace(".processor.", "."))
    return next((candidate for candidate in candidates if candidate in layers), name)


def build_pair(name: str, tensors: dict[str, Any], layer: Any, origin: str) -> LoraPair:
    """The pair, if it fits the layer."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() not in (2, 4):
        raise invalid_lora(origin, f"this model has no layer for {name!r}: it was made for another")
    if "down" not in tensors or "up" not in tensors:
        raise invalid_lora(origin, f"{name!r} lacks one half of its pair")
    down, up = (tensors[half].to(device=weight.device, dtype=weight.dtype) for half in ("down", "up"))
    shapes = (down.shape[1], up.shape[0], down.shape[0])
    if shapes != (weight.shape[1], weight.shape[0], up.shape[1]) or down.dim() != weight.dim() or up.dim() != weight.dim():
        raise invalid_lora(origin, f"{name!r} has the shapes {tuple(down.shape)} and {tuple(up.shape)}, its layer {tuple(weight.shape)}")
    return LoraPair(down, up, float(tensors.get("alpha", down.shape[0])) / down.shape[0])
