"""What a model folder is, what it takes in memory and what fits it, from its configuration and the headers of its files.

No weight is read and no device is used.
"""

import json
import stat
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from actors.engines.diffusion.checkpoint_check import check_configurations, check_schedule
from actors.engines.diffusion.empty_model import open_empty_model
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.families.registry import find_family, has_part, load_families, read_index
from actors.engines.diffusion.lora.layers import LayerTable
from actors.engines.diffusion.lora.strength import (
    ADAPTER_CONFIG,
    MAX_CONFIG_BYTES,
    AdapterConfig,
    LayerScalings,
    header_configs,
    invalid_lora,
    parse_adapter_config,
)
from actors.engines.diffusion.lora.tensors import find_strength
from actors.engines.diffusion.lora.validation import read_header, validate_lora
from actors.engines.diffusion.memory import model_memory, part_bytes, stored_tensors
from actors.engines.diffusion.request_check import LONGEST_SIDE, SHORTEST_SIDE
from actors.engines.language.checkpoint_check import describe_config
from actors.engines.language.families.family import VisionFamily
from actors.engines.language.families.registry import BY_MODEL_TYPE
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError
from bus.masking import mask_text
from contracts.image import AlphaSource

DTYPES = ("float32", "float16", "bfloat16")
MAX_FILES = 1000
"""In one folder of a checkpoint."""
MAX_JSON_BYTES = 64 << 20
"""Of one file of JSON, such as a tokenizer or the index of a large checkpoint."""
Report = dict[str, Any]


def report_model(folder: Path, settings: ImageSettings) -> tuple[Report, Family | None]:
    """What a folder is, and the empty model of one that the diffusion engine draws with. Raises ValueError for one that no engine loads."""
    check_files(folder)
    if (folder / "model_index.json").exists() or not (folder / "config.json").exists():
        return report_diffusion(folder, settings)
    config = read_json(folder / "config.json")
    if str(config.get("_class_name")) == "ControlNetModel":
        return report_controlnet(folder, config, settings), None
    return report_language_model(folder, config), None


def report_diffusion(folder: Path, settings: ImageSettings) -> tuple[Report, Family]:
    """Raises ValueError with what the checkpoint lacks."""
    kind, index = find_family(folder.name, folder, settings.families), read_index(folder.name, folder)
    names = [part for part in (*kind.parts, *kind.optional_parts) if has_part(index, part)]
    for part in names:
        check_files(folder / part)
    check_schedule(folder)
    family = open_empty_model(kind, folder, index)
    check_configurations(family)
    memory = {dtype: model_memory(folder, kind, dtype, safety_checker=settings.safety_checker) for dtype in DTYPES}
    for part in names:
        if hasattr(getattr(family.pipeline, part, None), "parameters") and part not in memory["float32"]:
            raise ValueError(f"the folder {part} has no weights: the checkpoint is not complete")
    side, defaults = family.own_side, family.defaults
    return {
        "kind": "image model",
        "family": kind.name,
        "class": str(index["_class_name"]),
        "parts": {part: index[part][1] for part in names},
        "memory_bytes": {dtype: {**parts, "total": sum(parts.values())} for dtype, parts in memory.items()},
        "defaults": {
            "width": side, "height": side, "steps": defaults.steps, "guidance_scale": defaults.guidance_scale,
            "scheduler": defaults.scheduler,
        },
        "sizes": {"shortest": SHORTEST_SIDE, "longest": LONGEST_SIDE, "multiple_of": kind.side_multiple},
        "edits": ["inpaint"] if family.mask_beside else sorted(kind.edits),
        "text_to_image": not family.mask_beside,
        "schedulers": list(kind.schedulers),
    }, family  # fmt: skip


def report_loras(files: list[Path], family: Any, settings: ImageSettings) -> list[Report]:
    """For each file whether it fits the model, and why not. Only headers are read, and the configurations beside them.

    Raises TimeoutError of a limit of time, which is that of all files together.
    """
    layers, reports = LayerTable(family), []
    for file in files:
        try:
            report = report_lora(file, layers, settings)
        except TimeoutError:
            raise
        except (PermanentError, OSError) as error:
            report = {"fits": False, "problem": mask_text(" ".join(str(error).split()))}
        reports.append({"file": str(file), **report})
    return reports


def report_lora(file: Path, layers: LayerTable, settings: ImageSettings) -> Report:
    """Of a file that fits. Raises PermanentError("lora-invalid") where a worker refuses it, OSError."""
    info = validate_lora(file, file.name, max_bytes=settings.lora_max_bytes, max_rank=settings.lora_max_rank)
    config = None if info.has_alphas else read_adapter_config(file)
    _, metadata = read_header(file, file.name, file.stat().st_size)
    assumed: tuple[float | None, AlphaSource] = (settings.lora_alpha, "assumed" if settings.lora_alpha is None else "setting")
    scalings = LayerScalings(file.name, config, header_configs(metadata, file.name), assumed)
    plan = layers.plan(info.shapes, file.name)
    for planned in plan.values():
        alpha = 1.0 if "alpha" in planned.keys.keys else None  # its value is among the weights, and changes no verdict
        find_strength(planned, scalings, layers, info.shapes, alpha)
    return {"fits": True, "problem": None, "methods": list(info.methods), "rank": info.rank, "layers": len(plan)}


def read_adapter_config(file: Path) -> AdapterConfig | None:
    """That beside a LoRA file. Raises PermanentError("lora-invalid"), OSError."""
    config = file.with_name(ADAPTER_CONFIG)
    if not config.is_file():
        return None
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise invalid_lora(file.name, f"{ADAPTER_CONFIG} beside it is larger than {MAX_CONFIG_BYTES} bytes")
    return parse_adapter_config(config.read_bytes(), file.name)


def report_controlnet(folder: Path, config: dict[str, Any], settings: ImageSettings) -> Report:
    """Which family a ControlNet is for shows in what it reads beside the text."""
    is_xl = config.get("addition_embed_type") == "text_time"
    families = [kind.name for kind in load_families(settings.families) if "control" in kind.edits]
    return {
        "kind": "ControlNet",
        "family": next((name for name in families if name.endswith("XL") == is_xl), "unknown"),
        "class": "ControlNetModel",
        "text_width": config.get("cross_attention_dim"),
        "memory_bytes": lone_model_memory(folder),
    }


def report_language_model(folder: Path, config: dict[str, Any]) -> Report:
    """Raises ValueError for an architecture that neither the vision nor the text engine loads."""
    architectures, model_type = config.get("architectures"), str(config.get("model_type"))
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else "none"
    if model_type in BY_MODEL_TYPE:
        return report_vision_model(folder, BY_MODEL_TYPE[model_type], name)
    if not name.endswith("ForCausalLM"):
        raise ValueError(
            f"its architecture is {name[:100]}, its model_type {model_type[:100]} (config.json): image models have a model_index.json, "
            f"vision models are of the types {', '.join(BY_MODEL_TYPE)}, and the text engine loads classes that end in ForCausalLM"
        )
    return {"kind": "language model", "family": model_type[:100], "class": name[:100], "memory_bytes": lone_model_memory(folder)}


def report_vision_model(folder: Path, family: type[VisionFamily], name: str) -> Report:
    """Raises ValueError for a model without a context length, and what transformers raises for a configuration that is not sound."""
    parts, context_tokens = describe_config(folder)
    return {
        "kind": "vision-language model",
        "family": family.name,
        "class": name[:100],
        "parts": parts,
        "memory_bytes": lone_model_memory(folder),
        "context_tokens": context_tokens,
        "quantization": ["8bit", "4bit"] if find_spec("bitsandbytes") else [],
    }


def lone_model_memory(folder: Path) -> dict[str, dict[str, int]]:
    """Of one model in its own folder. Raises ValueError for a folder without weights."""
    tensors = list(stored_tensors(folder))
    if not tensors:
        raise ValueError(f"{folder} has no weights (.safetensors or .bin): the checkpoint is not complete")
    return {dtype: {"total": part_bytes(tensors, dtype, False, "none", frozenset())} for dtype in DTYPES}


def check_files(folder: Path) -> None:
    """Raises ValueError for a folder that is not one of files: with a pipe or a device in it, too many of them, or far too much JSON."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: the engine reads folders in the format of diffusers or transformers")
    entries = list(islice(folder.iterdir(), MAX_FILES + 1))
    if len(entries) > MAX_FILES:
        raise ValueError(f"{folder} has more than {MAX_FILES} files: it is no checkpoint")
    for entry in entries:
        try:
            status = entry.stat()
        except OSError as error:
            raise ValueError(f"{entry} cannot be read ({error.strerror}): a link without its target, or a loop of links") from None
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ValueError(f"{entry} is neither a file nor a folder")
        if entry.suffix == ".json" and status.st_size > MAX_JSON_BYTES:
            raise ValueError(f"{entry} has {status.st_size:,} bytes; files of JSON have {MAX_JSON_BYTES:,} at most")


def read_json(file: Path) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no object of JSON")
    return content
