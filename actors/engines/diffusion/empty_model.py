"""A checkpoint's model without its weights: parts that have shapes and no values, on torch's device `meta`, and tokenizers and scheduler.

Layers, defaults and sizes of a checkpoint are known from it in seconds, whatever its size and without a device.
"""

import json
from pathlib import Path
from typing import Any

from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.families.registry import has_part
from actors.engines.process.failures import describe_error

CONFIG_NAMES = ("config.json", "scheduler_config.json", "tokenizer_config.json")
MAX_CONFIG_BYTES = 4 << 20


def open_empty_model(kind: type[Family], folder: Path, index: dict[str, Any]) -> Family:
    """The family of a checkpoint. `index`: its model_index.json. Raises ValueError with the part that cannot be built."""
    import diffusers

    arguments = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder")) | {"requires_safety_checker": False}
    parts = {part: build_part(folder, part, *index[part]) for part in index if has_part(index, part) and part not in arguments}
    loader = getattr(diffusers, kind.loader)
    expected, _ = loader._get_signature_keys(loader)
    optional = {name: value for name, value in arguments.items() if name in loader.__init__.__code__.co_varnames}
    absent = dict.fromkeys(expected - parts.keys() - optional.keys())
    return kind(loader(**absent | optional | {part: value for part, value in parts.items() if part in expected}))


def build_part(folder: Path, part: str, library: str, name: str) -> Any:
    """A part of a pipeline from its configuration. Raises ValueError."""
    source = folder / part
    if not part.isidentifier():
        raise ValueError(f"model_index.json names a part {part[:100]!r}, which is no name of a folder")
    check_config(source)
    try:
        return build_from_config(source, library, name)
    except Exception as error:
        cause = describe_error(error, 300)
        text = f"the part {part} ({name[:100]}) cannot be built from its configuration ({type(error).__name__}): {cause}"
        raise ValueError(text) from error


def check_config(source: Path) -> None:
    """Raises ValueError for a folder without a configuration, or with one that is too large or is not a file."""
    files = [file for name in CONFIG_NAMES if (file := source / name).exists()]
    if not files:
        raise ValueError(f"{source} has no configuration ({', '.join(CONFIG_NAMES)}): the checkpoint is not complete")
    for file in files:
        if not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{file} is no file of at most {MAX_CONFIG_BYTES:,} bytes")


def build_from_config(source: Path, library: str, name: str) -> Any:
    import diffusers
    import torch
    import transformers

    found = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), name, None)
    readable = (diffusers.SchedulerMixin, transformers.PreTrainedTokenizerBase)
    if not isinstance(found, type) or not issubclass(found, (transformers.PreTrainedModel, diffusers.ModelMixin, *readable)):
        raise ValueError(f"{library[:100]}.{name[:100]} is no model, tokenizer or scheduler of diffusers or transformers")
    kind: Any = found
    if issubclass(kind, transformers.PreTrainedModel):
        config = kind.config_class.from_dict(json.loads((source / "config.json").read_text()))
        with torch.device("meta"):
            return kind(config)
    if issubclass(kind, diffusers.ModelMixin):
        with torch.device("meta"):
            return kind.from_config(kind.load_config(source, local_files_only=True))
    return kind.from_pretrained(source, local_files_only=True)


def silence_libraries() -> None:
    """Import diffusers and transformers, which takes seconds, and turn off their warnings: they are about classes, not about a folder."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
