"""Reads the tensors of a LoRA file as pairs, layer by layer, in the key formats of diffusers, kohya and PEFT."""

from dataclasses import dataclass
from typing import Any

from actors.engines.diffusion.lora.validation import invalid_lora
from actors.engines.diffusion.requests import LoraFile
from bus.errors import TemporaryError

COMPONENTS = ("unet", "text_encoder")


@dataclass(frozen=True)
class LoraPair:
    """The change of one layer: `scaling` · up · down. Linear: `down` is rank × in, `up` out × rank; convolutions have two more axes."""

    down: Any
    up: Any
    scaling: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


def read_pairs(lora: LoraFile, pipeline: Any) -> dict[tuple[str, str], LoraPair]:
    """(component, layer) → pair, on the model's device and in its dtype. Raises PermanentError("lora-invalid"), TemporaryError."""
    import torch

    tensors = read_tensors(lora)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise invalid_lora(lora.origin, f"{name!r} has values that are not finite")
    pairs = {}
    for component in COMPONENTS:
        layers = dict(getattr(pipeline, component).named_modules())
        for name, tensors_of_layer in group_by_layer(component_tensors(component, tensors, pipeline)).items():
            layer = find_layer(name, layers)
            pairs[component, layer] = build_pair(name, tensors_of_layer, layers.get(layer), lora.origin)
    if not pairs:
        raise invalid_lora(lora.origin, "none of its keys is a layer of this model")
    return pairs


def read_tensors(lora: LoraFile) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(lora.path)
    except FileNotFoundError:
        message = f"the LoRA {lora.origin} was evicted from the cache on disk: make IMAGE_LORA_CACHE_BYTES larger"
        raise TemporaryError(message, code="lora-gone") from None
    except (SafetensorError, OSError) as error:
        raise invalid_lora(lora.origin, str(error)) from None
    return {name.replace("base_model.model.", "unet.", 1).replace(".default.", "."): tensor for name, tensor in tensors.items()}


def component_tensors(component: str, tensors: dict[str, Any], pipeline: Any) -> dict[str, Any]:
    """The tensors and alphas of one component under PEFT's names: `<layer>.lora_A.weight`, `.lora_B.weight`, `.alpha`."""
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    plain_alphas = {name: float(tensor) for name, tensor in tensors.items() if name.startswith(COMPONENTS) and name.endswith(".alpha")}
    weights = {name: tensor for name, tensor in tensors.items() if name not in plain_alphas}
    converted, alphas = pipeline.lora_state_dict(weights, unet_config=pipeline.unet.config)
    values = converted | (alphas or {}) | plain_alphas
    selected = {name.removeprefix(f"{component}."): value for name, value in values.items() if name.startswith(f"{component}.")}
    if component == "unet":
        return dict(convert_unet_state_dict_to_peft(selected))
    return dict(convert_state_dict_to_peft(convert_state_dict_to_diffusers(selected))) if selected else {}


def group_by_layer(named: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Layer → `down`, `up`, `alpha`."""
    layers: dict[str, dict[str, Any]] = {}
    for name, value in named.items():
        kind = "alpha" if name.endswith(".alpha") else "down" if ".lora_A." in name else "up"
        layer = name.removesuffix(".alpha").partition(".lora_A.")[0].partition(".lora_B.")[0]
        layers.setdefault(layer, {})[kind] = value
    return layers


def find_layer(name: str, layers: dict[str, Any]) -> str:
    """The layer's name in the installed libraries: in the text encoder some versions begin it with `text_model.`, some do not."""
    candidates = (name, name.removeprefix("text_model."), f"text_model.{name}", name.replace(".processor.", "."))
    return next((candidate for candidate in candidates if candidate in layers), name)


def build_pair(name: str, tensors: dict[str, Any], layer: Any, origin: str) -> LoraPair:
    """The pair on the layer's device and in its dtype. Raises PermanentError("lora-invalid") when it does not fit the layer."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() not in (2, 4):
        raise invalid_lora(origin, f"this model has no layer for {name!r}: the LoRA is for another model")
    if "down" not in tensors or "up" not in tensors:
        raise invalid_lora(origin, f"{name!r} has only one tensor of its pair")
    down, up = (tensors[half].to(device=weight.device, dtype=weight.dtype) for half in ("down", "up"))
    shapes = (down.shape[1], up.shape[0], down.shape[0])
    if shapes != (weight.shape[1], weight.shape[0], up.shape[1]) or down.dim() != weight.dim() or up.dim() != weight.dim():
        raise invalid_lora(origin, f"{name!r} has the shapes {tuple(down.shape)} and {tuple(up.shape)}, its layer {tuple(weight.shape)}")
    return LoraPair(down, up, float(tensors.get("alpha", down.shape[0])) / down.shape[0])
