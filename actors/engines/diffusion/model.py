"""A Stable Diffusion model in memory: its pipeline, its LoRA slots and its metadata."""

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from actors.engines.diffusion.batching import BASE_MODEL
from actors.engines.diffusion.checkpoint import (
    copy_to_local_cache,
    find_checkpoint,
    on_network_filesystem,
    weights_sha256,
    weights_size_bytes,
)
from actors.engines.diffusion.checkpoint_check import check_folder, check_parts, check_schedule, draw_test_picture
from actors.engines.diffusion.lora.slots import LoraSlots
from actors.engines.process.failures import is_device_failure
from actors.engines.process.gpu import free_memory
from actors.engines.process.model_cache import load_complete
from actors.engines.process.protocol import EngineHost
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError

log = structlog.get_logger()

LOAD_TIMEOUT_SECONDS = 900.0
DEFAULT_MODEL_BYTES = 6 << 30
"""The assumed size of a checkpoint that has not been downloaded yet."""


@dataclass(eq=False)
class DiffusionModel:
    """`applied_fallbacks`: out-of-memory fallbacks that are in effect in this pipeline."""

    name: str
    pipeline: Any
    loras: LoraSlots
    png_metadata: dict[str, str]
    applied_fallbacks: set[str] = field(default_factory=set)

    @property
    def torch_dtype(self) -> Any:
        return self.pipeline.unet.dtype

    def count_left_out(self, prompt: str) -> int:
        """Tokens at the end of a prompt that are beyond the text encoder's limit, and so have no effect."""
        tokenizer = self.pipeline.tokenizer
        tokens, limit = len(tokenizer(prompt, verbose=False).input_ids), int(tokenizer.model_max_length)
        return max(0, tokens - limit)

    def encode_prompts(self, prompt: str, negative_prompt: str, adapter: str) -> tuple[Any, Any]:
        """The embeddings of both prompts, 1 × 77 × width each, with only this adapter active."""
        self.loras.set_row_adapters(None if adapter == BASE_MODEL else [adapter])
        try:
            positive, negative = self.pipeline.encode_prompt(prompt, self.pipeline.device, 1, True, negative_prompt=negative_prompt)
        finally:
            self.loras.set_row_adapters(None)
        return positive, negative


def model_size_bytes(name: str, settings: ImageSettings) -> int:
    folder = find_checkpoint(name)
    return weights_size_bytes(folder) if folder else DEFAULT_MODEL_BYTES


def load_model(name: str, device: str, dtype: str, settings: ImageSettings, host: EngineHost) -> DiffusionModel:
    """Load a checkpoint and draw a small picture with it. Raises PermanentError("safety-checker-missing"), TemporaryError("model-unusable")
    with the cause and the cure: another worker may have a whole checkpoint, and this one after a repair.
    """
    try:
        return _load(name, device, dtype, settings, host)
    except PermanentError:
        raise
    except Exception as error:
        if is_device_failure(error):
            raise
        log.error("model.unusable", model=name, exc_info=error)
        cause = " ".join(str(error).split())[:600] or type(error).__name__
        raise TemporaryError(f"the checkpoint {name} cannot be used: {cause}", code="model-unusable") from error


def _load(name: str, device: str, dtype: str, settings: ImageSettings, host: EngineHost) -> DiffusionModel:
    """From a local copy when it is on a network disk. A hub id that is not in the cache is downloaded."""
    import torch
    from diffusers import StableDiffusionPipeline

    host.report_load_progress(f"loading {name}", LOAD_TIMEOUT_SECONDS, 0.0)
    folder = find_checkpoint(name)
    check_folder(name, folder)
    if folder and (settings.copy_weights == "always" or (settings.copy_weights == "auto" and on_network_filesystem(folder))):
        folder = copy_to_local_cache(folder, settings.local_cache)
    options = {} if settings.safety_checker else {"safety_checker": None, "requires_safety_checker": False}
    options |= load_text_encoder(folder, getattr(torch, dtype))
    pipeline = StableDiffusionPipeline.from_pretrained(folder or name, dtype=getattr(torch, dtype), **options)
    if settings.safety_checker and (pipeline.safety_checker is None or pipeline.feature_extractor is None):
        raise PermanentError("safety-checker-missing", f"IMAGE_SAFETY_CHECKER is on, but the checkpoint {name} has no safety checker")
    check_parts(pipeline)
    check_schedule(folder or find_checkpoint(name))
    host.report_load_progress(f"moving {name} to {device}", LOAD_TIMEOUT_SECONDS, 0.6)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    draw_test_picture(pipeline)
    folder = folder or find_checkpoint(name)
    sha256 = weights_sha256(folder) if folder and settings.hash_weights else None
    host.report_load_progress(f"loaded {name}", 60.0, 1.0)
    return DiffusionModel(name, pipeline, LoraSlots(pipeline, settings.lora_slots), model_metadata(name, sha256))


def load_text_encoder(folder: Path | None, dtype: Any) -> dict[str, Any]:
    """The text encoder of a checkpoint on this disk, since the pipeline would fill weights that it lacks with random numbers."""
    import transformers

    if folder is None:
        return {}
    library, name = json.loads((folder / "model_index.json").read_text())["text_encoder"]
    kind = getattr(transformers, name, None) if library == "transformers" else None
    if kind is None:
        return {}
    return {"text_encoder": load_complete(kind.from_pretrained, str(folder), subfolder="text_encoder", dtype=dtype)}


def model_metadata(name: str, sha256: str | None) -> dict[str, str]:
    """Name, sha256 and library versions, for the PNG files and the result."""
    libraries = {f"{library}_version": version(library) for library in ("diffusers", "torch", "transformers", "peft")}
    return {"model": Path(name).name if Path(name).is_dir() else name, **({"model_sha256": sha256} if sha256 else {}), **libraries}


def unload_model(model: DiffusionModel) -> None:
    """Drop every reference to the weights, and free their memory."""
    model.loras.clear()
    model.pipeline = None
    free_memory()
