"""The families that the engine knows, and the one that a checkpoint belongs to, by its model_index.json."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from actors.engines.diffusion.families.family import Family

PACKAGE = "actors.engines.diffusion.families"
FAMILIES = (
    f"{PACKAGE}.stable_diffusion:StableDiffusion",
    f"{PACKAGE}.stable_diffusion_xl:StableDiffusionXL",
    f"{PACKAGE}.stable_diffusion_3:StableDiffusion3",
    f"{PACKAGE}.flux:Flux",
    f"{PACKAGE}.qwen_image:QwenImage",
    f"{PACKAGE}.z_image:ZImage",
    f"{PACKAGE}.pixart_sigma:PixArtSigma",
)
"""`module:class` of each; IMAGE_FAMILIES adds others."""
OTHER_FORMATS = (".safetensors", ".ckpt", ".pt", ".bin", ".gguf")
MAX_INDEX_BYTES = 1 << 20


def load_families(others: Sequence[str] = ()) -> list[type[Family]]:
    """The classes. Raises ValueError for one of IMAGE_FAMILIES that cannot be imported."""
    return [import_family(path) for path in (*others, *FAMILIES)]


def import_family(path: str) -> type[Family]:
    module, _, name = path.partition(":")
    try:
        family = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the family {path!r} cannot be imported ({type(error).__name__}): IMAGE_FAMILIES names package.module:Class"
        ) from error
    if not (isinstance(family, type) and issubclass(family, Family)):
        raise ValueError(f"{path!r} in IMAGE_FAMILIES is no subclass of families.family.Family")
    return family


def find_family(name: str, folder: Path, others: Sequence[str] = ()) -> type[Family]:
    """The family of a checkpoint's folder; only model_index.json is read. Raises ValueError with the kind that is not supported."""
    content, index = read_index(name, folder), folder / "model_index.json"
    kind = str(content.get("_class_name"))
    families = load_families(others)
    family = next((family for family in families if kind in family.indexes), None)
    if family is None:
        known = ", ".join(family.name for family in families)
        raise ValueError(f"it is a {kind[:100]} (model_index.json); this engine draws with {known}")
    if missing := [part for part in family.parts if not has_part(content, part)]:
        raise ValueError(f"it is a {kind} without {', '.join(missing)}: {index} must name them")
    return family


def read_index(name: str, folder: Path) -> dict[str, Any]:
    """The content of model_index.json. Raises ValueError for a folder or a file in another format."""
    if not folder.is_dir():
        hint = "; convert it to a folder with from_single_file(file).save_pretrained(folder)" if name.endswith(OTHER_FORMATS) else ""
        raise ValueError(f"it is no folder{hint}")
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{index} does not exist: the folder is not in the format of diffusers")
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("too large")
        content = json.loads(index.read_text())
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{index} is not that of a pipeline") from None
    if not isinstance(content, dict):
        raise ValueError(f"{index} is not that of a pipeline")
    return content


def has_part(content: dict[str, Any], part: str) -> bool:
    """Whether model_index.json names a class for a part: `[library, class]`; `[null, null]` is none."""
    named = content.get(part)
    return isinstance(named, list) and len(named) == 2 and all(isinstance(entry, str) and entry for entry in named)
