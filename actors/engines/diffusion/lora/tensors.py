"""Reads the tensors of an adapter's file as changes of layers, after their names and shapes were checked against the model's layers."""

from collections.abc import Mapping
from typing import Any

from actors.engines.diffusion.lora.changes import Hadamard, Kronecker, LayerChange, LowRank, Product, build_hadamard, build_kronecker
from actors.engines.diffusion.lora.layers import LayerKey, LayerTable, PlannedChange
from actors.engines.diffusion.lora.names import Role
from actors.engines.diffusion.lora.shapes import Shape, ranks_of
from actors.engines.diffusion.lora.strength import AdapterConfig, LayerScalings, header_configs, invalid_lora, lora_is_gone
from actors.engines.diffusion.requests import LoraFile
from bus.errors import TemporaryError
from contracts.image import AlphaSource


def read_changes(lora: LoraFile, pipeline: Any, layers: LayerTable) -> dict[LayerKey, LayerChange]:
    """Layer → its change, on the model's device and in its dtype. Raises PermanentError("lora-invalid"), TemporaryError("lora-gone")."""
    tensors, header = read_tensors(lora)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    scalings = LayerScalings(lora.origin, lora.config, header, (lora.assumed_alpha, lora.assumed_from))
    changes = {}
    for key, planned in layers.plan(shapes, lora.origin).items():
        part, layer = key
        module = getattr(pipeline, part)
        weight = module.get_submodule(layer).weight
        place = weight, plain_dtype(weight, module)
        fitted: dict[Role, Any] = {
            role: fit_tensor(name, tensors[name], *place, lora.origin) for role, name in planned.keys.keys.items() if role != "alpha"
        }
        magnitude = fitted["magnitude"].flatten() if "magnitude" in fitted else None
        strength = find_strength(planned, scalings, layers, shapes, read_alpha(planned, tensors, lora.origin))
        changes[key] = LayerChange(*build_delta(fitted, planned), *strength, take_rows(magnitude, planned))
    return changes


def find_strength(
    planned: PlannedChange, scalings: LayerScalings, layers: LayerTable, shapes: Mapping[str, Shape], alpha: float | None
) -> tuple[float, AlphaSource]:
    """A layer's scaling and where it is known from. Raises PermanentError("lora-invalid") where a configuration is of other weights."""
    named = layers.bare_name(planned.keys.name) if planned.target.rows else planned.target.layer
    ranks = ranks_of(planned.keys, shapes)
    return scalings.scaling(planned.target.part, named, ranks[-1] if ranks else None, alpha, planned.keys.method)


def build_delta(tensors: dict[Role, Any], planned: PlannedChange) -> tuple[LowRank | Hadamard | Kronecker, float]:
    """The change without its scaling, and a factor that belongs to it. Of a fused layer only the layer's rows."""
    shape, rows = planned.target.shape, planned.target.rows
    if planned.keys.method == "LoKr":
        left = [tensors[role] for role in ("lokr_w1", "lokr_w1_b", "lokr_w1_a") if role in tensors]
        return build_kronecker(left, kronecker_factors(tensors, shape), rows)
    if planned.keys.method == "LoHa":
        first, second = (hadamard_product(tensors, number, planned) for number in (1, 2))
        return build_hadamard((first, second), shape)
    ones = (1,) * (len(shape) - 2)
    down, up, mid = tensors["down"], take_rows(tensors["up"], planned), tensors.get("mid")
    kernel = ones if mid is not None else shape[2:]
    return LowRank(down.reshape(*down.shape[:2], *kernel), up.reshape(*up.shape[:2], *ones), mid), 1.0


def hadamard_product(tensors: dict[Role, Any], number: int, planned: PlannedChange) -> Product:
    outer, inner, kernel = (tensors.get(f"hada_{name}") for name in (f"w{number}_a", f"w{number}_b", f"t{number}"))  # type: ignore[call-overload]
    return take_rows(outer, planned, axis=0 if kernel is None else 1), inner, kernel


def kronecker_factors(tensors: dict[Role, Any], shape: tuple[int, ...]) -> list[Any]:
    """The second matrix of a LoKr, whole or as a chain, the first to be applied first, with the kernel of its layer."""
    ones, kernel = (1,) * (len(shape) - 2), shape[2:]
    if (whole := tensors.get("lokr_w2")) is not None:
        return [whole.reshape(*whole.shape[:2], *kernel)]
    outer, inner, core = tensors["lokr_w2_a"], tensors["lokr_w2_b"], tensors.get("lokr_t2")
    if core is not None:
        return [inner.reshape(*inner.shape, *ones), core.reshape(*core.shape[:2], *kernel), outer.T.reshape(*outer.T.shape, *ones)]
    return [inner.reshape(len(inner), -1, *kernel), outer.reshape(*outer.shape, *ones)]


def take_rows(tensor: Any, planned: PlannedChange, axis: int = 0) -> Any:
    """Of a fused layer, the layer's own rows."""
    if tensor is None or planned.target.rows is None:
        return tensor
    start, stop = planned.target.rows
    return tensor.narrow(axis, start, stop - start).clone()


def read_tensors(lora: LoraFile) -> tuple[dict[str, Any], dict[str, AdapterConfig]]:
    """The tensors, and the configurations in the header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(lora.path, framework="pt") as weights:
            metadata = weights.metadata()
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise lora_is_gone(lora.origin) from None
    except SafetensorError:
        raise invalid_lora(lora.origin, "its weights are not in the safetensors format") from None
    except OSError as error:
        raise TemporaryError(f"the LoRA {lora.origin} cannot be read from the cache on disk: {error.strerror}", code="lora-gone") from None
    return tensors, header_configs(metadata, lora.origin)


def fit_tensor(key: str, tensor: Any, weight: Any, dtype: Any, origin: str) -> Any:
    """The tensor on the device of its layer's `weight`. Raises PermanentError("lora-invalid") when a value is not finite, in the file or
    in `dtype`.
    """
    fitted = tensor.to(device=weight.device, dtype=dtype)
    if not bool(fitted.isfinite().all()):
        raise invalid_lora(origin, f"{key[:200]!r} has values that are not finite as {str(dtype).removeprefix('torch.')}")
    return fitted


def plain_dtype(*modules: Any) -> Any:
    """That of the first with a dtype in which PyTorch computes; the weights of quantized layers have others."""
    import torch

    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return next((module.dtype for module in modules if module.dtype in plain), torch.float32)


def read_alpha(planned: PlannedChange, tensors: dict[str, Any], origin: str) -> float | None:
    key = planned.keys.keys.get("alpha")
    if key is None:
        return None
    alpha = tensors[key]
    if alpha.numel() != 1 or not bool(alpha.isfinite().all()):
        raise invalid_lora(origin, f"{key[:200]!r} is not one finite number")
    return float(alpha)
