"""What a checkpoint takes in memory: estimated from the headers of its files before it is loaded, measured afterwards.

An estimate is the number of values times the bytes of the dtype in which the loader keeps them, part by part of model_index.json.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import structlog

if TYPE_CHECKING:
    from actors.engines.diffusion.families.family import Family

log = structlog.get_logger()

Quantization = Literal["none", "int8", "nf4", "fp8"]

SUFFIXES = (".safetensors", ".bin")
WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What diffusers and transformers call the weights of a part, without a suffix."""
HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100 << 20
"""The limit of the safetensors format."""
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
"""By the names of the safetensors format."""
LOADED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes whose values the loader converts to its own. All others stay as they are stored; float8 only where the part is quantized."""
QUANTIZED_BYTES: dict[Quantization, float] = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of one value of a quantized linear layer; NF4 keeps a float32 for each block of 64."""
NO_DTYPES: Mapping[str, str] = MappingProxyType({})
NOTHING_QUANTIZED: Mapping[str, Quantization] = MappingProxyType({})


class StoredTensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]


def checkpoint_memory(
    folder: Path,
    dtype: str,
    *,
    dtypes: Mapping[str, str] = NO_DTYPES,
    left_out: Collection[str] = (),
    quantized: Mapping[str, Quantization] = NOTHING_QUANTIZED,
) -> dict[str, int]:
    """Part of the pipeline → bytes, for each part that has weights.

    `dtype`: float32, float16 or bfloat16. `dtypes`: of parts that have another one. `left_out`: parts that are not loaded. `quantized`:
    parts whose linear layers are quantized while they are loaded. Raises ValueError for a folder without a readable model_index.json,
    or with a broken file.
    """
    parts = {}
    for part, kind in named_parts(folder).items():
        if part not in left_out and (tensors := list(stored_tensors(folder / part))):
            loaded = dtypes.get(part, dtype)
            quantized_before = "quantization_config" in read_config(folder / part)
            parts[part] = part_bytes(tensors, loaded, quantized_before, quantized.get(part, "none"), float32_modules(*kind, loaded))
    return parts


def model_memory(
    folder: Path, family: "type[Family]", dtype: str, *, safety_checker: bool = False, quantization: Quantization = "none"
) -> dict[str, int]:
    """The same for a checkpoint as its family loads it. Raises ValueError."""
    import torch

    vae_dtype = str(family.vae_dtype(read_config(folder / "vae"), getattr(torch, dtype))).removeprefix("torch.")
    left_out = () if safety_checker else ("safety_checker",)
    return checkpoint_memory(folder, dtype, dtypes={"vae": vae_dtype}, left_out=left_out, quantized={family.denoiser_part: quantization})


def named_parts(folder: Path) -> dict[str, tuple[str, str]]:
    """The parts of model_index.json: name → library and class. Raises ValueError."""
    try:
        content = json.loads((folder / "model_index.json").read_text())
        entries = {name: value for name, value in content.items() if isinstance(value, list) and len(value) == 2 and all(value)}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'model_index.json'} cannot be read as that of a pipeline ({type(error).__name__})") from None
    return {name: (str(library), str(kind)) for name, (library, kind) in entries.items()}


def part_bytes(
    tensors: Iterable[StoredTensor], dtype: str, quantized_before: bool, quantization: Quantization, float32: frozenset[str]
) -> int:
    """The bytes of a part's tensors. `quantized_before`: as it is stored. `float32`: names of modules that stay in float32."""
    total = 0.0
    for tensor in tensors:
        if tensor.dtype not in FLOATS and (quantized_before or not tensor.dtype.startswith("F8")):
            value_bytes: float = DTYPE_BYTES.get(tensor.dtype, 8)
        elif float32.intersection(tensor.name.split(".")):
            value_bytes = 4
        elif quantization != "none" and len(tensor.shape) == 2 and tensor.name.endswith(".weight"):
            value_bytes = QUANTIZED_BYTES[quantization]
        else:
            value_bytes = LOADED_BYTES[dtype]
        total += math.prod(tensor.shape) * value_bytes
    return math.ceil(total)


def float32_modules(library: str, kind: str, dtype: str) -> frozenset[str]:
    """The modules that the class of a part keeps in float32 whatever dtype is asked for, such as `wo` of T5 in float16."""
    if dtype == "float32" or library not in ("diffusers", "transformers"):
        return frozenset()
    import importlib

    loader = getattr(importlib.import_module(library), kind, None)
    names = set(getattr(loader, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == "float16" or library == "diffusers":
        names |= set(getattr(loader, "_keep_in_fp32_modules", None) or ())
    return frozenset(names)


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def stored_tensors(folder: Path) -> Iterator[StoredTensor]:
    """The tensors of the files that the loader reads, without their values."""
    for file in loaded_files(folder):
        yield from read_header(file) if file.suffix == ".safetensors" else read_pickle(file)


def loaded_files(folder: Path) -> list[Path]:
    """The weight files of a part that are loaded: safetensors rather than pickles, a variant such as fp16 only where it stands alone."""
    for suffix in SUFFIXES:
        for stem in WEIGHT_NAMES:
            if (file := folder / f"{stem}{suffix}").is_file():
                return [file]
            if (index := folder / f"{stem}{suffix}.index.json").is_file():
                return indexed_files(index)
    for suffix in SUFFIXES:
        if indexes := sorted(folder.glob(f"*{suffix}.index.*.json")):
            return indexed_files(indexes[0])
        if files := sorted(file for file in folder.glob(f"*{suffix}") if file.stem.split(".")[0] in WEIGHT_NAMES):
            return files[:1]
    return []


def indexed_files(index: Path) -> list[Path]:
    """The files that an index of shards names. Raises ValueError when it cannot be read, or when one does not exist."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [index.parent / Path(name).name for name in names]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of weight files: download the checkpoint again") from None
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{index} names files that do not exist, such as {missing[0]}: download the checkpoint again")
    return files


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file. Raises ValueError."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(length)
            header = json.loads(stream.read(length))
        entries = {name: value for name, value in header.items() if name != "__metadata__"}
        return [StoredTensor(name, str(value["dtype"]), tuple(map(int, value["shape"]))) for name, value in entries.items()]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"{file} is not in the safetensors format: download the checkpoint again") from None


def read_pickle(file: Path) -> list[StoredTensor]:
    """The tensors of a file of torch, without their values; pickled code does not run. Raises ValueError."""
    import torch

    try:
        content = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        items = [(name, value) for name, value in content.items() if isinstance(value, torch.Tensor)]
    except Exception as error:
        log.warning("weights.unreadable", file=str(file), exc_info=error)
        raise ValueError(f"{file} cannot be read ({type(error).__name__}): save the checkpoint as safetensors") from None
    return [StoredTensor(str(name), safetensors_dtype(value), tuple(value.shape)) for name, value in items]


def safetensors_dtype(tensor: Any) -> str:
    """The dtype of a tensor of torch by the name of the safetensors format. One that it has not is taken as integers of its size."""
    names = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
    return names.get(str(tensor.dtype), f"I{8 * tensor.element_size()}")


def measure_modules(modules: Iterable[Any]) -> int:
    """The bytes of all parameters and buffers of modules that are loaded; memory that several share counts once."""
    storages = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr() or id(tensor)] = storage.nbytes()
    return sum(storages.values())


def pipeline_modules(pipeline: Any) -> dict[str, Any]:
    """The parts of a pipeline that have weights."""
    return {name: part for name, part in pipeline.components.items() if hasattr(part, "parameters")}
