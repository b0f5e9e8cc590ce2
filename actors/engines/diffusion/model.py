"""A diffusion model in memory: its family and pipeline, its LoRA slots and its metadata."""

import json
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from actors.engines.diffusion.batching import Condition, RowAdapters
from actors.engines.diffusion.block_cache import require_cached_blocks
from actors.engines.diffusion.checkpoint import (
    copy_to_local_cache,
    download_index,
    find_checkpoint,
    has_parts,
    on_network_filesystem,
    weights_sha256,
)
from actors.engines.diffusion.checkpoint_check import check_parts, check_schedule, draw_test_picture
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.families.registry import OTHER_FORMATS, find_family, has_part
from actors.engines.diffusion.lora.slots import LoraSlots
from actors.engines.diffusion.memory import measure_modules, pipeline_modules
from actors.engines.diffusion.preparation import prepare_model
from actors.engines.diffusion.preview import PreviewMap, fit_preview
from actors.engines.diffusion.prompt_cache import PromptCache
from actors.engines.diffusion.requests import ResolvedRequest
from actors.engines.diffusion.text_encoders import TextEncoders
from actors.engines.process.failures import describe_error, is_device_failure
from actors.engines.process.gpu import free_memory
from actors.engines.process.model_cache import load_complete
from actors.engines.process.protocol import EngineHost
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError

log = structlog.get_logger()

LOAD_TIMEOUT_SECONDS = 900.0


@dataclass(eq=False)
class DiffusionModel:
    """`metadata`: name, hash and library versions. `warnings`: settings that have no effect with this model, each with the cause.

    `preview`: None where its VAE gives none. `applied_fallbacks`: out-of-memory fallbacks that are in effect in this pipeline.
    """

    name: str
    family: Family
    loras: LoraSlots
    metadata: dict[str, str]
    text_encoders: TextEncoders
    prompts: PromptCache
    preview: PreviewMap | None
    warnings: tuple[str, ...] = ()
    applied_fallbacks: set[str] = field(default_factory=set)

    @cached_property
    def weights_bytes(self) -> int:
        """Of all parts, as they are in memory."""
        return measure_modules(pipeline_modules(self.family.pipeline).values())

    @property
    def size_bytes(self) -> int:
        """Of its weights, LoRAs and encoded prompts; without text encoders that wait in the main memory."""
        waiting = self.text_encoders.size_bytes if self.text_encoders.offloaded else 0
        return self.weights_bytes - waiting + self.loras.size_bytes + self.prompts.used_bytes

    def encode(self, request: ResolvedRequest, adapters: RowAdapters) -> list[Condition]:
        """What the halves of an order's rows are drawn after, its text encoders with these adapters alone; kept for later orders."""
        return self.prompts.get(request, self.loras.text_adapters(adapters), partial(self._encode, adapters))

    def _encode(self, adapters: RowAdapters, request: ResolvedRequest) -> list[Condition]:
        self.loras.set_row_adapters([adapters])
        try:
            return self.family.encode(request)
        finally:
            self.loras.set_row_adapters(None)


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
        cause = describe_error(error, 600)
        raise TemporaryError(f"the checkpoint {name} cannot be used: {cause}", code="model-unusable") from error


def _load(name: str, device: str, dtype: str, settings: ImageSettings, host: EngineHost) -> DiffusionModel:
    """From a local copy when it is on a network disk. Of a hub id what the cache lacks is downloaded, its index first."""
    import torch

    host.report_load_progress(f"loading {name}", LOAD_TIMEOUT_SECONDS, 0.0)
    folder = find_checkpoint(name)
    kind = find_family(name, folder or (Path(name) if name.endswith(OTHER_FORMATS) else download_index(name)), settings.families)
    if folder is None or not (has_parts(folder, kind.parts) or Path(name).expanduser().is_dir()):
        folder = kind.download(name)
    if settings.copy_weights == "always" or (settings.copy_weights == "auto" and on_network_filesystem(folder)):
        folder = copy_to_local_cache(folder, settings.local_cache)
    if settings.block_cache_threshold:
        require_cached_blocks(kind)
    torch_dtype = getattr(torch, dtype)
    parts = load_parts(folder, kind, torch_dtype)
    if not settings.safety_checker and kind.has_safety_checker:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    pipeline = kind.load(str(folder), torch_dtype, **parts)
    if settings.safety_checker and (getattr(pipeline, "safety_checker", None) is None or pipeline.feature_extractor is None):
        raise PermanentError("safety-checker-missing", f"IMAGE_SAFETY_CHECKER is on, but the checkpoint {name} has no safety checker")
    family = kind(pipeline)
    check_parts(family)
    check_schedule(folder)
    host.report_load_progress(f"moving {name} to {device}", LOAD_TIMEOUT_SECONDS, 0.6)
    pipeline.set_progress_bar_config(disable=True)
    loras = LoraSlots(family, settings.lora_slots)
    text_encoders, warnings = prepare_model(family, loras, device, settings)
    draw_test_picture(family)
    preview = fit_preview(family) if settings.preview_seconds else None
    sha256 = weights_sha256(folder) if settings.hash_weights else None
    host.report_load_progress(f"loaded {name}", 60.0, 1.0)
    metadata, prompts = model_metadata(name, sha256), PromptCache(settings.prompt_cache_bytes)
    return DiffusionModel(name, family, loras, metadata, text_encoders, prompts, preview, warnings)


def load_parts(folder: Path, family: type[Family], dtype: Any) -> dict[str, Any]:
    """Parts that are loaded before the pipeline: text encoders, since it would fill weights that they lack with random numbers, and a VAE
    that is kept in another dtype than the model.
    """
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text())
    parts: dict[str, Any] = {}
    for part in (*family.parts, *family.optional_parts):
        if not has_part(index, part):
            parts[part] = None
            continue
        library, name = index[part]
        kind = getattr(transformers, name, None) if library == "transformers" else None
        if part.startswith("text_encoder") and kind is not None:
            parts[part] = load_complete(kind.from_pretrained, str(folder), subfolder=part, dtype=dtype)
    if "vae" in family.parts and (config := folder / "vae" / "config.json").is_file():
        vae_dtype = family.vae_dtype(json.loads(config.read_text()), dtype)
        if vae_dtype != dtype:
            kind = getattr(diffusers, index["vae"][1])
            parts["vae"] = kind.from_pretrained(str(folder), subfolder="vae", dtype=vae_dtype)
    return parts


def model_metadata(name: str, sha256: str | None) -> dict[str, str]:
    """Name, sha256 and library versions, for the PNG files and the result."""
    libraries = {f"{library}_version": version(library) for library in ("diffusers", "torch", "transformers", "peft")}
    return {"model": Path(name).name if Path(name).is_dir() else name, **({"model_sha256": sha256} if sha256 else {}), **libraries}


def unload_model(model: DiffusionModel) -> None:
    """Drop every reference to the weights, and free their memory."""
    model.loras.clear()
    model.prompts.clear()
    model.text_encoders.clear()
    model.family.pipeline = None
    free_memory()
