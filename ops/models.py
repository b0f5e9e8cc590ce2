"""Tiny checkpoints with the real architectures, made here without a download. Writes folders under `MODEL_DIR`."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from actors.engines.tiny_diffusion import write_diffusion, write_lora
from actors.engines.tiny_llava import write_llava

log = structlog.get_logger()

DIFFUSION = "tiny-sd"
LLAVA = "tiny-llava"
LORAS = {"tiny-lora-a": 1, "tiny-lora-b": 2, "tiny-lora-c": 3}
"""Name and seed."""


def tiny_in(folder: Path) -> dict[str, Path]:
    """Where each tiny checkpoint lies, once it is made."""
    return {DIFFUSION: folder / DIFFUSION, LLAVA: folder / LLAVA} | {name: folder / "loras" / f"{name}.safetensors" for name in LORAS}


def make_tiny(folder: Path, *, force: bool = False) -> dict[str, Path]:
    """Make what is not there yet and return where each checkpoint lies. A few seconds the first time, then nothing."""
    made = tiny_in(folder)
    model = made[DIFFUSION]
    if force or not (model / "model_index.json").exists():
        _replace(model, write_diffusion)
    if force or not (made[LLAVA] / "config.json").exists():
        _replace(made[LLAVA], write_llava)
    for name, seed in LORAS.items():
        if force or not made[name].exists():
            _replace(made[name], partial(write_lora, model=model, seed=seed, text_encoder=seed == 3))
    return made


def _replace(target: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename: whoever looks meanwhile sees the old or the new, never a half."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    write(fresh)
    if target.is_dir():
        shutil.rmtree(target)
    fresh.rename(target)
    log.info("checkpoint.written", path=str(target))
