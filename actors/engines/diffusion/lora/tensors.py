"""Reads the tensors of a LoRA file as pairs, layer by layer, after their names and shapes were checked against the model's layers."""

from dataclasses import dataclass
from typing import Any

from actors.engines.diffusion.lora.names import LayerTable, PairKeys
from actors.engines.diffusion.lora.strength import AdapterConfig, LayerScalings, header_configs, invalid_lora
from actors.engines.diffusion.requests import LoraFile
from bus.errors import TemporaryError
from contracts.image import AlphaSource


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


def read_pairs(lora: LoraFile, pipeline: Any, layers: LayerTable) -> dict[tuple[str, str], LoraPair]:
    """(component, layer) → pair, on the model's device and in its dtype. Raises PermanentError("lora-invalid"), TemporaryError."""
    tensors, header = read_tensors(lora)
    plan = layers.plan({key: tuple(tensor.shape) for key, tensor in tensors.items()}, lora.origin)
    scalings = LayerScalings(lora.origin, lora.config, header, (lora.assumed_alpha, lora.assumed_from))
    pairs = {}
    for (component, layer), keys in plan.items():
        weight = getattr(pipeline, component).get_submodule(layer).weight
        down, up = (fit_tensor(key, tensors[key], weight, lora.origin) for key in (keys.down, keys.up))
        alpha = read_alpha(keys, tensors, lora.origin)
        pairs[component, layer] = LoraPair(down, up, *scalings.scaling(component, layer, down.shape[0], alpha))
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
    return tensors, header_configs(metadata, lora.origin)


def fit_tensor(key: str, tensor: Any, weight: Any, origin: str) -> Any:
    """The tensor on the device of its layer's `weight`, in its dtype and with as many axes.

    Raises PermanentError("lora-invalid") when a value is not finite, in the file or in that dtype.
    """
    shape = (*tensor.shape[:2], *((tensor.shape[2:] or (1, 1)) if weight.dim() == 4 else ()))
    fitted = tensor.reshape(shape).to(device=weight.device, dtype=weight.dtype)
    if not bool(fitted.isfinite().all()):
        raise invalid_lora(origin, f"{key[:200]!r} has values that are not finite as {str(weight.dtype).removeprefix('torch.')}")
    return fitted


def read_alpha(keys: PairKeys, tensors: dict[str, Any], origin: str) -> float | None:
    if keys.alpha is None:
        return None
    alpha = tensors[keys.alpha]
    if alpha.numel() != 1 or not bool(alpha.isfinite().all()):
        raise invalid_lora(origin, f"{keys.alpha[:200]!r} is not one finite number")
    return float(alpha)
