"""Reads the tensors of a LoRA file as pairs, layer by layer, in the key formats of diffusers, kohya and PEFT."""

import re
from dataclasses import dataclass
from typing import Any

from actors.engines.diffusion.lora.strength import COMPONENTS, AdapterConfig, LayerScalings, header_configs, invalid_lora
from actors.engines.diffusion.requests import LoraFile
from bus.errors import TemporaryError
from contracts.image import AlphaSource

OLD_ATTENTION_KEY = re.compile(r"\.to_(?:q|k|v|out)_lora\.")


@dataclass(frozen=True)
class LoraPair:
    """The change of one layer: `scaling` · up · down. Linear: `down` is rank × in, `up` out × rank; convolutions have two more axes."""

    down: Any
    up: Any
    scaling: float
    alpha_from: AlphaSource

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


def read_pairs(lora: LoraFile, pipeline: Any) -> dict[tuple[str, str], LoraPair]:
    """(component, layer) → pair, on the model's device and in its dtype. Raises PermanentError("lora-invalid"), TemporaryError."""
    import torch

    tensors, header = read_tensors(lora)
    scalings = LayerScalings(lora.origin, lora.config, header, (lora.assumed_alpha, lora.assumed_from))
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise invalid_lora(lora.origin, f"{name!r} has values that are not finite")
    pairs = {}
    for component in COMPONENTS:
        layers = dict(getattr(pipeline, component).named_modules())
        for name, tensors_of_layer in group_by_layer(component_tensors(component, tensors, pipeline, lora.origin)).items():
            layer = find_layer(name, layers)
            down, up = fit_pair(name, tensors_of_layer, layers.get(layer), lora.origin)
            pairs[component, layer] = LoraPair(down, up, *scalings.scaling(component, layer, down.shape[0], tensors_of_layer.get("alpha")))
    if not pairs:
        raise invalid_lora(lora.origin, "none of its keys is a layer of this model")
    return pairs


def read_tensors(lora: LoraFile) -> tuple[dict[str, Any], dict[str, AdapterConfig]]:
    """The tensors, and the configurations in the header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(lora.path, framework="pt") as weights:
            metadata = weights.metadata()
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        message = f"the LoRA {lora.origin} was evicted from the cache on disk: make IMAGE_LORA_CACHE_BYTES larger"
        raise TemporaryError(message, code="lora-gone") from None
    except SafetensorError:
        raise invalid_lora(lora.origin, "its weights are not in the safetensors format") from None
    except OSError as error:
        raise TemporaryError(f"the LoRA {lora.origin} cannot be read from the cache on disk: {error.strerror}", code="lora-gone") from None
    named = {name.replace("base_model.model.", "unet.", 1).replace(".default.", "."): tensor for name, tensor in tensors.items()}
    return named, header_configs(metadata, lora.origin)


def component_tensors(component: str, tensors: dict[str, Any], pipeline: Any, origin: str) -> dict[str, Any]:
    """The tensors and alphas of one component under PEFT's names: `<layer>.lora_A.weight`, `.lora_B.weight`, `.alpha`.

    Raises PermanentError("lora-invalid") when diffusers does not understand the names.
    """
    try:
        return convert_tensors(component, tensors, pipeline)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, RuntimeError) as error:
        raise invalid_lora(origin, f"diffusers cannot convert the names of its tensors ({type(error).__name__})") from None


def convert_tensors(component: str, tensors: dict[str, Any], pipeline: Any) -> dict[str, Any]:
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    plain_alphas = {name: float(tensor) for name, tensor in tensors.items() if name.startswith(COMPONENTS) and name.endswith(".alpha")}
    weights = {name: tensor for name, tensor in tensors.items() if name not in plain_alphas}
    converted, alphas = pipeline.lora_state_dict(weights, unet_config=pipeline.unet.config)
    values = converted | (alphas or {}) | plain_alphas
    selected = {name.removeprefix(f"{component}."): value for name, value in values.items() if name.startswith(f"{component}.")}
    if component == "unet":
        return dict(convert_unet_state_dict_to_peft(selected))
    # diffusers recognizes the names into which it converts kohya's by the output projection alone, which a LoRA may leave out.
    is_old = any(OLD_ATTENTION_KEY.search(name) for name in selected)
    named = convert_state_dict_to_diffusers(selected, StateDictType.DIFFUSERS_OLD if is_old else None) if selected else {}
    return dict(convert_state_dict_to_peft(named)) if named else {}


def group_by_layer(named: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Layer → `down`, `up`, `alpha`."""
    layers: dict[str, dict[str, Any]] = {}
    for name, value in named.items():
        kind = "alpha" if name.endswith(".alpha") else "down" if ".lora_A." in name else "up"
        layer = name.removesuffix(".alpha").partition(".lora_A.")[0].partition(".lora_B.")[0]
        layers.setdefault(layer, {})[kind] = float(value) if kind == "alpha" else value
    return layers


def find_layer(name: str, layers: dict[str, Any]) -> str:
    """The layer's name in the installed libraries: in the text encoder some versions begin it with `text_model.`, some do not."""
    candidates = (name, name.removeprefix("text_model."), f"text_model.{name}", name.replace(".processor.", "."))
    return next((candidate for candidate in candidates if candidate in layers), name)


def fit_pair(name: str, tensors: dict[str, Any], layer: Any, origin: str) -> tuple[Any, Any]:
    """`down` and `up` on the layer's device and in its dtype. Raises PermanentError("lora-invalid") when they do not fit the layer."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() not in (2, 4):
        raise invalid_lora(origin, f"this model has no layer for {name!r}: the LoRA is for another model")
    if "down" not in tensors or "up" not in tensors:
        raise invalid_lora(origin, f"{name!r} has only one tensor of its pair")
    down, up = (tensors[half].to(device=weight.device, dtype=weight.dtype) for half in ("down", "up"))
    shapes = (down.shape[1], up.shape[0], down.shape[0])
    if shapes != (weight.shape[1], weight.shape[0], up.shape[1]) or down.dim() != weight.dim() or up.dim() != weight.dim():
        raise invalid_lora(origin, f"{name!r} has the shapes {tuple(down.shape)} and {tuple(up.shape)}, its layer {tuple(weight.shape)}")
    return down, up
