"""The models that orders may name, loaded within the memory budget; orders that a model cannot draw are refused before they are queued."""

import time
from collections.abc import Callable
from pathlib import Path

from actors.engines.diffusion.checkpoint import find_checkpoint
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.families.registry import find_family
from actors.engines.diffusion.lora.validation import validate_lora
from actors.engines.diffusion.model import DiffusionModel, load_model, model_size_bytes, unload_model
from actors.engines.diffusion.request_check import check_loaded, resolve_request
from actors.engines.diffusion.requests import DiffusionRequest, LoraFile, ResolvedRequest
from actors.engines.process.model_cache import ModelCache
from actors.engines.process.protocol import EngineHost
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError

UNUSABLE_SECONDS = 60.0
"""How long orders for a checkpoint that could not be loaded are refused before it is loaded again."""


class LoadedModels:
    """`in_use`: whether active orders need the model of a checkpoint."""

    def __init__(self, settings: ImageSettings, device: str, dtype: str, host: EngineHost, in_use: Callable[[str], bool]) -> None:
        self.settings, self.device, self.dtype, self.host = settings, device, dtype, host
        self.cache: ModelCache[DiffusionModel] = ModelCache(
            settings.memory_budget_bytes,
            measure=lambda name: model_size_bytes(name, settings),
            load=self._load,
            unload=unload_model,
            in_use=in_use,
            pinned=frozenset({settings.model} if settings.pinned else ()),
        )
        self._unusable: dict[str, tuple[float, TemporaryError]] = {}

    def default(self) -> DiffusionModel:
        return self.cache.get(self.settings.model)

    def check(self, request: DiffusionRequest) -> None:
        """What can be told of an order without loading its model. Raises PermanentError, TemporaryError("model-unusable")."""
        checkpoint = self._checkpoint_of(request)
        self._refuse_unusable(checkpoint)
        if checkpoint in self.cache.names:
            self.resolve(request, self.cache.get(checkpoint))
        elif folder := find_checkpoint(checkpoint):
            family = find_family_of(checkpoint, folder, self.settings)
            resolve_request(request, family, family.defaults.side)
        for lora in request.loras:
            self._check_lora(lora, checkpoint)

    def get(self, request: DiffusionRequest) -> DiffusionModel:
        """The order's model, loaded if it is not in memory. Raises InsufficientMemory, TemporaryError("model-unusable")."""
        checkpoint = self._checkpoint_of(request)
        self._refuse_unusable(checkpoint)
        return self.cache.get(checkpoint)

    def resolve(self, request: DiffusionRequest, model: DiffusionModel) -> ResolvedRequest:
        """The order with every parameter that the model decides. Raises PermanentError."""
        resolved = resolve_request(request, type(model.family), model.family.own_side)
        check_loaded(resolved, model.family)
        return resolved

    def _checkpoint_of(self, request: DiffusionRequest) -> str:
        if request.model and request.model not in self.settings.models:
            raise PermanentError("model-unknown", f"{request.model!r} is not in IMAGE_MODELS: {', '.join(self.settings.models) or 'none'}")
        return self.settings.models[request.model] if request.model else self.settings.model

    def _check_lora(self, lora: LoraFile, checkpoint: str) -> None:
        """Names and shapes, against the layers of the model where it is in memory; the weights are read when the order starts."""
        info = validate_lora(lora.path, lora.origin, max_bytes=self.settings.lora_max_bytes, max_rank=self.settings.lora_max_rank)
        if checkpoint in self.cache.names:
            self.cache.get(checkpoint).loras.layers.plan(info.shapes, lora.origin)

    def _load(self, name: str) -> DiffusionModel:
        try:
            return load_model(name, self.device, self.dtype, self.settings, self.host)
        except TemporaryError as error:
            self._unusable[name] = time.monotonic() + UNUSABLE_SECONDS, error
            raise

    def _refuse_unusable(self, name: str) -> None:
        """Raises the error of a checkpoint that could not be loaded a moment ago: to try again would evict sound models for it."""
        until, error = self._unusable.get(name, (0.0, None))
        if error and time.monotonic() < until:
            raise TemporaryError(str(error), code=error.code)


def find_family_of(checkpoint: str, folder: Path, settings: ImageSettings) -> type[Family]:
    """Raises TemporaryError("model-unusable"): another worker may have another checkpoint by this name."""
    try:
        return find_family(checkpoint, folder, settings.families)
    except ValueError as error:
        raise TemporaryError(f"the checkpoint {checkpoint} cannot be used: {error}", code="model-unusable") from error
