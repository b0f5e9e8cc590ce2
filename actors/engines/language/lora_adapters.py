"""LoRA adapters of a text model. Rows with different adapters, and rows without one, share a step of the batch."""

import json
import warnings
from pathlib import Path
from typing import Any

ADAPTER_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
BASE = "__base__"
"""What PEFT calls the model without an adapter."""
REFUSED_OPTIONS = {"use_dora": "DoRA", "alora_invocation_tokens": "activated LoRA"}
"""Variants that PEFT cannot mix in one batch."""


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
            raise ValueError(f"{describe(name, folder)} does not fit the model: {error}; name an adapter that was made for it") from error
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
    if refused := [label for option, label in REFUSED_OPTIONS.items() if config.get(option)]:
        raise ValueError(f"{describe(name, folder)} uses {refused[0]}, which cannot share a batch: merge it into a model of its own")


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
