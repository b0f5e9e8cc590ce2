"""Models and ControlNets that orders may name, loaded within one memory budget; what a model cannot draw is refused before the queue."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from actors.engines.diffusion.checkpoint import find_checkpoint, has_parts
from actors.engines.diffusion.controlnets import ControlNets, cache_name, controlnet_of, unload_controlnet
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.families.registry import find_family
from actors.engines.diffusion.lora.checked_files import CheckedFiles
from actors.engines.diffusion.lora.slots import check_slots
from actors.engines.diffusion.memory import measure_modules, model_memory
from actors.engines.diffusion.model import DiffusionModel, load_model, unload_model
from actors.engines.diffusion.request_check import check_loaded, resolve_request
from actors.engines.diffusion.requests import DiffusionRequest, ResolvedRequest
from actors.engines.diffusion.saturation import Saturation
from actors.engines.diffusion.saturation_calls import measure_model
from actors.engines.process.failures import is_device_failure
from actors.engines.process.model_cache import InsufficientMemory, ModelCache
from actors.engines.process.protocol import EngineHost
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError

log = structlog.get_logger()

DEFAULT_MODEL_BYTES = 6 << 30
"""The assumed size of a checkpoint that has not been downloaded yet."""
MEASURE_TIMEOUT_SECONDS = 600.0
"""The longest time without a heartbeat while a model is measured: a call may take longer than was expected."""
UNUSABLE_SECONDS = 60.0
"""How long orders for a checkpoint that could not be loaded are refused before it is loaded again."""


class LoadedModels:
    """`cache`: models by checkpoint, and ControlNets by `cache_name`. `in_use`: whether active orders need one of these names."""

    def __init__(self, settings: ImageSettings, device: str, dtype: str, host: EngineHost, in_use: Callable[[str], bool]) -> None:
        self.settings, self.device, self.dtype, self.host = settings, device, dtype, host
        self.controlnets = ControlNets(settings.controlnets, device, dtype, host)
        self.checked_loras = CheckedFiles(settings)
        self._needed, self._starting = in_use, ""
        self.cache: ModelCache[Any] = ModelCache(
            settings.memory_budget_bytes,
            measure=self._expected_bytes,
            measure_loaded=lambda loaded: loaded.size_bytes if isinstance(loaded, DiffusionModel) else measure_modules([loaded.net]),
            load=self._load,
            unload=lambda loaded: unload_model(loaded) if isinstance(loaded, DiffusionModel) else unload_controlnet(loaded),
            in_use=lambda name: name == self._starting or in_use(name),
            pinned=frozenset({settings.model} if settings.pinned else ()),
        )
        self._unusable: dict[str, tuple[float, PermanentError | TemporaryError]] = {}
        self.warnings: dict[str, list[str]] = {}
        """By checkpoint: settings that have no effect with it, each with the cause."""
        self.saturation: dict[str, Saturation] = {}
        """By checkpoint; kept when a model is evicted, so that each is measured once."""

    def default(self) -> DiffusionModel:
        return self._take_model(self.settings.model)

    def check(self, request: DiffusionRequest) -> None:
        """What can be known of an order without loading its model. Raises PermanentError, TemporaryError("model-unusable")."""
        checkpoint = self._checkpoint_of(request)
        self._refuse_unusable(checkpoint)
        model = self._take_model(checkpoint) if checkpoint in self.cache.names else None
        if model:
            self.resolve(request, model)
        elif folder := find_checkpoint(checkpoint):
            family = find_family_of(checkpoint, folder, self.settings)
            resolve_request(request, family, family.defaults.side)
        if request.control:
            self.controlnets.check_name(request.control.model)
        if request.control and model:
            self.controlnets.check_fit(request.control.model, model.family)
        check_slots(request.loras, self.settings.lora_slots)
        for lora in request.loras:
            self.checked_loras.check(lora, checkpoint, model.loras.layers if model else None)

    def get(self, request: DiffusionRequest) -> DiffusionModel:
        """The order's model, loaded if it is not in memory; it stays at least until the next order's is taken.

        Raises InsufficientMemory, TemporaryError("model-unusable" · "out-of-memory").
        """
        self._starting = self._checkpoint_of(request)
        return self._take_model(self._starting)

    def get_control_net(self, request: DiffusionRequest, model: DiffusionModel) -> Any:
        """The ControlNet that the order names, loaded if it is not in memory; None if it names none.

        Raises PermanentError("control-unfit"), InsufficientMemory, TemporaryError("model-unusable" · "out-of-memory").
        """
        if request.control is None:
            return None
        name = request.control.model
        self.controlnets.check_fit(name, model.family)
        if model.size_bytes + self.controlnets.size_bytes(name) > self.settings.memory_budget_bytes:  # it needs this very model
            raise self._too_large(cache_name(name))
        return self._take(cache_name(name)).net

    def _take_model(self, checkpoint: str) -> DiffusionModel:
        model: DiffusionModel = self._take(checkpoint)
        return model

    def _take(self, name: str) -> Any:
        """From the cache. Raises InsufficientMemory while active orders use what is there, TemporaryError when no waiting would help."""
        self._refuse_unusable(name)
        try:
            return self.cache.get(name)
        except InsufficientMemory as error:
            if any(self._needed(held) for held in self.cache.names):
                raise
            raise self._too_large(name) from error

    def _too_large(self, name: str) -> TemporaryError:
        """Without the names of other models, which may be folders of this machine."""
        controlnet = controlnet_of(name)
        what = f"the ControlNet {controlnet}" if controlnet else "the model"
        text = f"{what} does not fit beside what must stay in memory: raise IMAGE_MEMORY_BUDGET_BYTES"
        log.error("model.too_large", model=name, resident=self.cache.names, budget_bytes=self.settings.memory_budget_bytes)
        return TemporaryError(text, code="out-of-memory")

    def _expected_bytes(self, name: str) -> int:
        """What a model or ControlNet will take; of a checkpoint that cannot be read nothing, since loading it says why."""
        if controlnet := controlnet_of(name):
            return self.controlnets.size_bytes(controlnet)
        settings, folder = self.settings, find_checkpoint(name)
        if folder is None:
            return DEFAULT_MODEL_BYTES
        try:
            family = find_family(name, folder, settings.families)
            if not has_parts(folder, family.parts) and not Path(name).expanduser().is_dir():
                return DEFAULT_MODEL_BYTES  # its download ended early
            parts = model_memory(folder, family, self.dtype, safety_checker=settings.safety_checker, quantization=settings.quantize)
        except ValueError:
            return 0
        return sum(parts.values())

    def resolve(self, request: DiffusionRequest, model: DiffusionModel) -> ResolvedRequest:
        """The order with every parameter that the model decides. Raises PermanentError."""
        resolved = resolve_request(request, model.family, model.family.own_side)
        check_loaded(resolved, model.family)
        return resolved

    def _checkpoint_of(self, request: DiffusionRequest) -> str:
        if request.model and request.model not in self.settings.models:
            raise PermanentError("model-unknown", f"{request.model!r} is not in IMAGE_MODELS: {', '.join(self.settings.models) or 'none'}")
        return self.settings.models[request.model] if request.model else self.settings.model

    def _load(self, name: str) -> Any:
        try:
            if controlnet := controlnet_of(name):
                return self.controlnets.load(controlnet)
            model = load_model(name, self.device, self.dtype, self.settings, self.host)
        except (PermanentError, TemporaryError) as error:
            self._unusable[name] = time.monotonic() + UNUSABLE_SECONDS, error
            raise
        self.warnings[name] = list(model.warnings)
        if self.settings.measure_seconds and name not in self.saturation:
            self._measure(name, model)
        return model

    def _measure(self, name: str, model: DiffusionModel) -> None:
        """A failure says nothing about orders, which fail alone: without figures IMAGE_MAX_ROWS is the limit."""
        self.host.report_load_progress(f"measuring how many rows of {name} pay", MEASURE_TIMEOUT_SECONDS, None)
        try:
            self.saturation[name] = measure_model(model.family, self.settings.max_rows, self.settings.measure_seconds)
            log.info("model.measured", model=name, **self.saturation[name].describe())
        except Exception as error:
            if is_device_failure(error):
                raise
            log.warning("model.not_measured", model=name, exc_info=error)

    @property
    def own_row_limit(self) -> int:
        """The most rows of one call that pay with IMAGE_MODEL at its own size."""
        saturation = self.saturation.get(self.settings.model)
        return min((saturation and saturation.row_limit) or self.settings.max_rows, self.settings.max_rows)

    def row_limit(self, model: DiffusionModel, request: ResolvedRequest) -> int:
        """The most rows of one call that pay at the size of an order."""
        saturation = self.saturation.get(model.name)
        limit = saturation.limit_at(model.family.count_tokens(request)) if saturation else None
        return min(limit or self.settings.max_rows, self.settings.max_rows)

    def _refuse_unusable(self, name: str) -> None:
        """Raises the error of a checkpoint that could not be loaded a moment ago: to try again would evict sound models for it."""
        until, error = self._unusable.get(name, (0.0, None))
        if error is None or time.monotonic() >= until:
            return
        if isinstance(error, PermanentError):
            raise PermanentError(error.code, str(error))
        raise TemporaryError(str(error), code=error.code)


def find_family_of(checkpoint: str, folder: Path, settings: ImageSettings) -> type[Family]:
    """Raises TemporaryError("model-unusable"): another worker may have another checkpoint by this name."""
    try:
        return find_family(checkpoint, folder, settings.families)
    except ValueError as error:
        raise TemporaryError(f"the checkpoint {checkpoint} cannot be used: {error}", code="model-unusable") from error
