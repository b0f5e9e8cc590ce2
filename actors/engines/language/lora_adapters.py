"""LoRA adapters of a text model. Rows with different adapters, and rows without one, share a step of the batch."""

import json
import warnings
from pathlib import Path
from typing import Any

from actors.engines.process.failures import describe_error

MAX_CAUSE_CHARS = 600
ADAPTER_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
BASE = "__base__"
"""What PEFT calls the model without an adapter."""
PROVEN_OPTIONS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "modules_to_save", "peft_type", "peft_version", "r", "rank_pattern",
    "revision", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
"""Options with any value. Others must have PEFT's default: of some, loading changes the model's own weights, and with them the answers of
all others, and some cannot be mixed in one batch.
"""
PROVEN_INITIALIZATIONS = (True, False, "gaussian")
"""Others write what they take from the model's own weights back into them."""


def load_adapters(model: Any, loras: dict[str, str]) -> tuple[Any, dict[str, str]]:
    """The model with the adapters of `loras` (name → folder), and their names in PEFT. Raises ValueError for one that does not fit."""
    if not loras:
        return model, {}
    from peft import PeftModel

    for name, folder in loras.items():
        check_adapter(name, Path(folder).expanduser())
    internal = {name: f"adapter_{number}" for number, name in enumerate(loras)}  # PEFT takes no dots in a name
    for name, folder in loras.items():
        path = str(Path(folder).expanduser())
        try:
            with warnings.catch_warnings(action="ignore"):  # of weights that are left out, which check_weights finds
                if isinstance(model, PeftModel):
                    model.load_adapter(path, adapter_name=internal[name])
                else:
                    model = PeftModel.from_pretrained(model, path, adapter_name=internal[name])
        except Exception as error:
            cause = f"does not fit the model: {describe_error(error, MAX_CAUSE_CHARS)}; name an adapter that was made for it"
            raise ValueError(f"{describe(name, folder)} {cause}") from error
        check_weights(model, name, folder, internal[name])
    return model.eval(), internal


def check_adapter(name: str, folder: Path) -> None:
    """Raises ValueError for a folder that is no LoRA adapter, or one that cannot share a batch."""
    if missing := [file for file in (ADAPTER_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]:
        raise ValueError(f"{describe(name, folder)} has no {missing[0]}: name a folder that PEFT's save_pretrained wrote")
    try:
        config = json.loads((folder / ADAPTER_FILE).read_text())
    except ValueError as error:
        raise ValueError(f"{describe(name, folder)}: {ADAPTER_FILE} is no JSON: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ValueError(f"{describe(name, folder)} has the type {kind!r}; only LORA is supported")
    if refused := refused_option(config):
        cause = f"uses {refused}, which would change the answers of others or cannot share a batch: merge it into a model of its own"
        raise ValueError(f"{describe(name, folder)} {cause}")


def refused_option(config: dict[str, Any]) -> str | None:
    """An option whose value is not proven, with its value; options that PEFT does not know count as well."""
    from peft import LoraConfig

    defaults = LoraConfig()
    for option, value in config.items():
        if option == "init_lora_weights":
            is_proven = value in PROVEN_INITIALIZATIONS
        else:
            is_proven = option in PROVEN_OPTIONS or not value or value == getattr(defaults, option, None)
        if not is_proven:
            return f"{option} = {value!r:.100}"
    return None


def check_weights(model: Any, name: str, folder: str, internal: str) -> None:
    """Raises ValueError when the file has other weights than the model took: PEFT leaves those with a foreign name out."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(Path(folder).expanduser() / WEIGHTS_FILE, "pt") as file:
        given = set(file.keys())
    taken = set(get_peft_model_state_dict(model, adapter_name=internal))
    if different := sorted(given ^ taken):
        raise ValueError(f"{describe(name, folder)} does not fit the model: {different[0]} is in one of them only; it was made for another")


def describe(name: str, folder: str | Path) -> str:
    return f"the adapter {name!r} of TEXT_LORAS ({folder})"
