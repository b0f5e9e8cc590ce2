"""Validates LoRA files by the header of the safetensors file; the weights themselves are not read."""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engines.diffusion.lora.strength import header_configs, invalid_lora

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
KEY_PREFIXES = ("unet.", "text_encoder.", "lora_unet_", "lora_te_", "lora_te1_", "base_model.model.")
"""Of diffusers, kohya, and PEFT's adapter folders."""
FLOAT_DTYPES = ("F16", "BF16", "F32")
SCALAR_DTYPES = (*FLOAT_DTYPES, "F64", "I64", "I32", "I16", "I8", "U8")
DOWN_KEY = re.compile(r"\.(lora_A|lora_down|lora\.down|down)\.(?:default\.)?weight$")
UP_KEY = re.compile(r"\.(lora_B|lora_up|lora\.up|up)\.(?:default\.)?weight$")
SCALAR_KEY = re.compile(r"\.(alpha|rank)$")


@dataclass(frozen=True)
class LoraInfo:
    """`rank`: the highest in the file. `has_text_encoder`: it also changes the text encoder. `has_alphas`: it says alpha of all layers."""

    rank: int
    has_text_encoder: bool
    has_alphas: bool


def validate_lora(file: Path, origin: str, *, max_bytes: int, max_rank: int) -> LoraInfo:
    """Validate the header of a file. Raises PermanentError("lora-invalid") with the file's `origin` and the reason."""
    size = file.stat().st_size
    if size > max_bytes:
        raise invalid_lora(origin, f"it has {size} bytes, the limit is {max_bytes}")
    tensors, metadata = read_header(file, origin, size)
    if not tensors or len(tensors) > MAX_TENSORS:
        raise invalid_lora(origin, f"it has {len(tensors)} tensors; expected are 1 to {MAX_TENSORS}")
    ranks = [_check_tensor(name, tensor, origin) for name, tensor in tensors.items()]
    if not any(ranks):
        raise invalid_lora(origin, "it has no LoRA pair")
    if max(ranks) > max_rank:
        raise invalid_lora(origin, f"its rank is {max(ranks)}, the limit is {max_rank}")
    has_text_encoder = any(name.startswith(("text_encoder.", "lora_te")) for name in tensors)
    has_alphas = all(DOWN_KEY.sub(".alpha", name) in tensors for name in tensors if DOWN_KEY.search(name))
    return LoraInfo(max(ranks), has_text_encoder, has_alphas or bool(header_configs(metadata, origin)))


def read_header(file: Path, origin: str, size: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Name → dtype, shape, offsets, and the metadata. The first eight bytes of the file are the length of the JSON header."""
    with file.open("rb") as weights:
        prefix = weights.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise invalid_lora(origin, "it is not in the safetensors format; pickled weights are rejected, convert them")
        try:
            header = json.loads(weights.read(length))
            tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
            ends = [int(tensor["data_offsets"][1]) for tensor in tensors.values()]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise invalid_lora(origin, "its header is invalid") from None
    if max(ends, default=0) != size - 8 - length:
        raise invalid_lora(origin, "it is cut short or has bytes after its weights")
    return tensors, header.get("__metadata__")


def _check_tensor(name: str, tensor: dict[str, Any], origin: str) -> int:
    """The rank that a tensor shows by its shape; 0: none. Raises PermanentError("lora-invalid")."""
    if not name.startswith(KEY_PREFIXES):
        raise invalid_lora(origin, f"the key {name[:120]!r} is not one of a LoRA for this model; keys begin with {', '.join(KEY_PREFIXES)}")
    is_scalar = bool(SCALAR_KEY.search(name))
    dtypes = SCALAR_DTYPES if is_scalar else FLOAT_DTYPES
    if tensor.get("dtype") not in dtypes:
        raise invalid_lora(origin, f"{name[:120]!r} has the dtype {str(tensor.get('dtype'))[:20]}; accepted are {', '.join(dtypes)}")
    if is_scalar and tensor.get("shape") not in ([], [1]):
        raise invalid_lora(origin, f"{name[:120]!r} is not one number")
    shape = tensor.get("shape") or [0]
    if DOWN_KEY.search(name):
        return int(shape[0])
    if UP_KEY.search(name):
        return int(shape[1]) if len(shape) > 1 else 0
    if is_scalar:
        return 0
    raise invalid_lora(origin, f"the key {name[:120]!r} belongs to no LoRA pair; DoRA and LyCORIS are not supported")
