"""Validates LoRA files by the header of the safetensors file; the weights themselves are not read, and no model is known."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from actors.engines.diffusion.lora.names import LayerKeys, group_keys, split_key
from actors.engines.diffusion.lora.shapes import Shape, ranks_of
from actors.engines.diffusion.lora.strength import Method, header_configs, invalid_lora

MAX_HEADER_BYTES = 4 << 20
"""A LoRA of every layer of a large model has a header of under 1 MiB, metadata of its training aside."""
MAX_TENSORS = 10_000
MAX_KEY_CHARACTERS = 256
FLOAT_DTYPES = ("F16", "BF16", "F32")
SCALAR_DTYPES = (*FLOAT_DTYPES, "F64", "I64", "I32", "I16", "I8", "U8")

Size = Annotated[int, Field(ge=0, lt=1 << 40)]


class TensorHeader(BaseModel):
    """`shape`: the length of each axis. `data_offsets`: begin and end among the bytes after the header."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    dtype: str = Field(max_length=20)
    shape: list[Size] = Field(max_length=8)
    data_offsets: list[Size] = Field(min_length=2, max_length=2)


TENSOR_HEADERS = TypeAdapter(dict[str, TensorHeader])
METADATA = TypeAdapter[dict[str, str] | None](dict[str, str] | None)


@dataclass(frozen=True)
class LoraInfo:
    """`rank`: the highest in the file; 0 for a LoKr of whole matrices. `has_alphas`: it says alpha of all layers. `shapes`: key → shape."""

    rank: int
    methods: tuple[Method, ...]
    has_alphas: bool
    shapes: dict[str, tuple[int, ...]]


def validate_lora(file: Path, origin: str, *, max_bytes: int, max_rank: int) -> LoraInfo:
    """Validate the header of a file. Raises PermanentError("lora-invalid") with the file's `origin` and the reason."""
    size = file.stat().st_size
    if size > max_bytes:
        raise invalid_lora(origin, f"it has {size} bytes, the limit is {max_bytes}")
    tensors, metadata = read_header(file, origin, size)
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, origin)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layers = group_keys(tensors, origin).values()
    ranks = [rank for layer in layers for rank in check_ranks(layer, shapes, origin)]
    if ranks and max(ranks) > max_rank:
        raise invalid_lora(origin, f"its rank is {max(ranks)}, the limit is {max_rank} (IMAGE_LORA_MAX_RANK)")
    configured = header_configs(metadata, origin)
    has_alphas = all("alpha" in layer.keys or layer.name.partition(".")[0] in configured for layer in layers)
    return LoraInfo(max(ranks, default=0), tuple(dict.fromkeys(layer.method for layer in layers)), has_alphas, shapes)


def read_header(file: Path, origin: str, size: int) -> tuple[dict[str, TensorHeader], Any]:
    """The tensors by name, and the metadata. The first eight bytes of the file are the length of the JSON header."""
    with file.open("rb") as weights:
        prefix = weights.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if MAX_HEADER_BYTES < length <= size - 8:
            raise invalid_lora(origin, f"its header has {length} bytes, the limit is {MAX_HEADER_BYTES}")
        if not 2 <= length <= size - 8:
            raise invalid_lora(origin, "it is not in the safetensors format; pickled weights are rejected, convert them")
        try:
            header = json.loads(weights.read(length))
            metadata = METADATA.validate_python(header.pop("__metadata__", None))
            if not 1 <= len(header) <= MAX_TENSORS:
                raise invalid_lora(origin, f"it has {len(header)} tensors; expected are 1 to {MAX_TENSORS}")
            tensors = TENSOR_HEADERS.validate_python(header)
        except (ValidationError, ValueError, TypeError, AttributeError, RecursionError):
            raise invalid_lora(origin, "its header is invalid") from None
    if max((tensor.data_offsets[1] for tensor in tensors.values()), default=0) != size - 8 - length:
        raise invalid_lora(origin, "it is cut short or has bytes after its weights")
    return tensors, metadata


def _check_tensor(name: str, tensor: TensorHeader, origin: str) -> None:
    """Length of the key, type and shape. Raises PermanentError("lora-invalid")."""
    if len(name) > MAX_KEY_CHARACTERS:
        raise invalid_lora(origin, f"the key {name[:120]!r}… has {len(name)} characters, the limit is {MAX_KEY_CHARACTERS}")
    is_alpha = (parts := split_key(name)) is not None and parts[1] == "alpha"
    dtypes = SCALAR_DTYPES if is_alpha else FLOAT_DTYPES
    if tensor.dtype not in dtypes:
        raise invalid_lora(origin, f"{name[:120]!r} has the dtype {tensor.dtype}; accepted are {', '.join(dtypes)}")
    if is_alpha and tensor.shape not in ([], [1]):
        raise invalid_lora(origin, f"{name[:120]!r} is not one number")


def check_ranks(layer: LayerKeys, shapes: Mapping[str, Shape], origin: str) -> list[int]:
    """The ranks of a layer's products. Raises PermanentError("lora-invalid") when their halves differ, or are no matrices."""
    try:
        return ranks_of(layer, shapes)
    except ValueError as error:
        raise invalid_lora(origin, str(error)) from None
