"""Tiny checkpoints with the real architectures, without a download: trained ones that come with the project, random ones made here."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from actors.engines.tiny_diffusion import write_diffusion, write_lora
from actors.engines.tiny_llama import write_llama
from actors.engines.tiny_llava import write_llava

log = structlog.get_logger()

TRAINED = Path(__file__).parent / "tiny" / "checkpoints"
"""What `atelier models train-tiny` made."""
PAINTER, CRITIC, WRITER = "tiny-shapes", "tiny-critic", "tiny-writer"
STYLES = ("tiny-ink", "tiny-night", "tiny-neat")
DIFFUSION = "tiny-sd"
LLAVA = "tiny-llava"
LLAMA = "tiny-llama"
LORAS = {"tiny-lora-a": 1, "tiny-lora-b": 2, "tiny-lora-c": 3}
"""Name and seed. They fit the random checkpoint, the styles the trained one."""


def tiny_in(folder: Path) -> dict[str, Path]:
    """Where each tiny checkpoint lies, once it is made."""
    models = {name: folder / name for name in (PAINTER, CRITIC, WRITER, DIFFUSION, LLAVA, LLAMA)}
    return models | {name: folder / "loras" / f"{name}.safetensors" for name in (*STYLES, *LORAS)}


def make_tiny(folder: Path, *, force: bool = False) -> dict[str, Path]:
    """Make what is not there yet and return where each checkpoint lies. A few seconds the first time, then nothing."""
    made = tiny_in(folder)
    for name in (PAINTER, CRITIC, WRITER, *STYLES):
        if force or not made[name].exists():
            _replace(made[name], partial(copy, TRAINED / made[name].relative_to(folder)))
    model = made[DIFFUSION]
    if force or not (model / "model_index.json").exists():
        _replace(model, write_diffusion)
    if force or not (made[LLAVA] / "config.json").exists():
        _replace(made[LLAVA], write_llava)
    if force or not (made[LLAMA] / "config.json").exists():
        _replace(made[LLAMA], write_llama)
    for name, seed in LORAS.items():
        if force or not made[name].exists():
            _replace(made[name], partial(write_lora, model=model, seed=seed, text_encoder=seed == 3))
    return made


def copy(source: Path, target: Path) -> None:
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


def _replace(target: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename: whoever looks meanwhile sees the old or the new, never a half."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    write(fresh)
    if target.is_dir():
        shutil.rmtree(target)
    fresh.rename(target)
    log.info("checkpoint.written", path=str(target))
