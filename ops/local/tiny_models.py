"""Tiny checkpoints with the real architectures, without a download: trained ones from the package, random ones generated here."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from actors.engines.diffusion.tiny_stable_diffusion import write_tiny_diffusion, write_tiny_lora
from actors.engines.language.tiny_llama import write_tiny_llama
from actors.engines.language.tiny_llava import write_tiny_llava

log = structlog.get_logger()

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""The output of `atelier models train-tiny`."""
TINY_DIFFUSION, TINY_VLM, TINY_LLM = "tiny-shapes", "tiny-critic", "tiny-writer"
STYLE_LORAS = ("tiny-ink", "tiny-night", "tiny-neat")
RANDOM_DIFFUSION = "tiny-sd"
RANDOM_VLM = "tiny-llava"
RANDOM_LLM = "tiny-llama"
RANDOM_LORAS = {"tiny-lora-a": 1, "tiny-lora-b": 2, "tiny-lora-c": 3}
"""Name and seed. They fit the random diffusion checkpoint; the style LoRAs fit the trained one."""


def tiny_model_paths(folder: Path) -> dict[str, Path]:
    """The path of each tiny checkpoint by its name, whether it exists or not."""
    models = {name: folder / name for name in (TINY_DIFFUSION, TINY_VLM, TINY_LLM, RANDOM_DIFFUSION, RANDOM_VLM, RANDOM_LLM)}
    return models | {name: folder / "loras" / f"{name}.safetensors" for name in (*STYLE_LORAS, *RANDOM_LORAS)}


def copy_trained_models(folder: Path, *, force: bool = False) -> dict[str, Path]:
    """Copy the trained checkpoints that are missing, or all with `force`, without torch; return the path of every tiny checkpoint."""
    paths = tiny_model_paths(folder)
    for name in (TINY_DIFFUSION, TINY_VLM, TINY_LLM, *STYLE_LORAS):
        if force or not paths[name].exists():
            _write_atomically(paths[name], partial(copy_checkpoint, CHECKPOINTS / paths[name].relative_to(folder)))
    return paths


def make_tiny_models(folder: Path, *, force: bool = False) -> dict[str, Path]:
    """Write the checkpoints that are missing, or all with `force`; return the path of each. The random ones need torch."""
    paths = copy_trained_models(folder, force=force)
    model = paths[RANDOM_DIFFUSION]
    if force or not (model / "model_index.json").exists():
        _write_atomically(model, write_tiny_diffusion)
    if force or not (paths[RANDOM_VLM] / "config.json").exists():
        _write_atomically(paths[RANDOM_VLM], write_tiny_llava)
    if force or not (paths[RANDOM_LLM] / "config.json").exists():
        _write_atomically(paths[RANDOM_LLM], write_tiny_llama)
    for name, seed in RANDOM_LORAS.items():
        if force or not paths[name].exists():
            _write_atomically(paths[name], partial(write_tiny_lora, model=model, seed=seed, text_encoder=seed == 3))
    return paths


def make_tiny_families(folder: Path, *, force: bool = False) -> dict[str, Path]:
    """Write a tiny checkpoint of every family of image models, their ControlNets and every family of vision models, those that are missing
    or all with `force`; return the path of each. Needs torch.
    """
    from actors.engines.diffusion.tiny_families import TINY_CONTROLNETS, TINY_FAMILIES, write_tiny_family
    from actors.engines.language.tiny_vision import TINY_VISION, write_tiny_vision

    writers = dict.fromkeys((*TINY_FAMILIES, *TINY_CONTROLNETS), write_tiny_family) | dict.fromkeys(TINY_VISION, write_tiny_vision)
    for name, write in writers.items():
        if force or not (folder / name).exists():
            _write_atomically(folder / name, partial(write, name))
    return {name: folder / name for name in writers}


def copy_checkpoint(source: Path, target: Path) -> None:
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


def _write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and rename, so that a reader never sees a partial checkpoint."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    write(temporary)
    if target.is_dir():
        shutil.rmtree(target)
    temporary.rename(target)
    log.info("checkpoint.written", path=str(target))
