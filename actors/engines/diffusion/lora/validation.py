"""Validates LoRA files by the header of the safetensors file; the weights themselves are not read."""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

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


Size = Annotated[int, Field(ge=0, lt=1 << 40)]


class TensorHeader(BaseModel):
    """`shape`: the length of each axis. `data_offsets`: begin and end among the bytes after the header."""

    model_config = ConfigDict(frozen=True, strict=True)

    dtype: str = Field(max_length=20)
    shape: list[Size] = Field(max_length=8)
    data_offsets: list[Size] = Field(min_length=2, max_length=2)


TENSOR_HEADERS = TypeAdapter(dict[str, TensorHeader])


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
    has_text_encoder = any(component_of(name) == "text_encoder" for name in tensors)
    configured = header_configs(metadata, origin)
    down_names = [name for name in tensors if DOWN_KEY.search(name)]
    has_alphas = all(component_of(name) in configured or DOWN_KEY.sub(".alpha", name) in tensors for name in down_names)
    return LoraInfo(max(ranks), has_text_encoder, has_alphas)


def component_of(name: str) -> str:
    return "text_encoder" if name.startswith(("text_encoder.", "lora_te")) else "unet"


def read_header(file: Path, origin: str, size: int) -> tuple[dict[str, TensorHeader], Any]:
    """The tensors by name, and the metadata. The first eight bytes of the file are the length of the JSON header."""
    with file.open("rb") as weights:
        prefix = weights.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise invalid_lora(origin, "it is not in the safetensors format; pickled weights are rejected, convert them")
        try:
            header = json.loads(weights.read(length))
            metadata = header.pop("__metadata__", None)
            tensors = TENSOR_HEADERS.validate_python(header)
        except (ValidationError, ValueError, TypeError, AttributeError, RecursionError):
            raise invalid_lora(origin, "its header is invalid") from None
    if max((tensor.data_offsets[1] for tensor in tensors.values()), default=0) != size - 8 - length:
        raise invalid_lora(origin, "it is cut short or has bytes after its weights")
    return tensors, metadata


def _check_tensor(name: str, tensor: TensorHeader, origin: str) -> int:
    """The rank that a tensor shows by its shape; 0: none. Raises PermanentError("lora-invalid")."""
    if not name.startswith(KEY_PREFIXES):
        raise invalid_lora(origin, f"the key {name[:120]!r} is not one of a LoRA for this model; keys begin with {', '.join(KEY_PREFIXES)}")
    is_scalar = bool(SCALAR_KEY.search(name))
    dtypes = SCALAR_DTYPES if is_scalar else FLOAT_DTYPES
    if tensor.dtype not in dtypes:
        raise invalid_lora(origin, f"{name[:120]!r} has the dtype {tensor.dtype}; accepted are {', '.join(dtypes)}")
    if is_scalar and tensor.shape not in ([], [1]):
        raise invalid_lora(origin, f"{name[:120]!r} is not one number")
    if DOWN_KEY.search(name):
        return tensor.shape[0] if tensor.shape else 0
    if UP_KEY.search(name):
        return tensor.shape[1] if len(tensor.shape) > 1 else 0
    if is_scalar:
        return 0
    raise invalid_lora(origin, f"the key {name[:120]!r} belongs to no LoRA pair; DoRA and LyCORIS are not supported")
