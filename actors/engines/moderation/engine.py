"""The engine of the moderate step: shows one picture a tick to each configured model.

Reads pixels that were decoded before, returns the scores of each model by label.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from actors.engines.process.device_time import DeviceTime
from actors.engines.process.failures import fail_request, is_device_failure
from actors.engines.process.protocol import EngineEvent, EngineHost, Failed, Finished, Started

ENGINE_FACTORY = "actors.engines.moderation.engine:open_checks"
OPEN_SECONDS, TICK_SECONDS = 300.0, 60.0


@dataclass(frozen=True)
class CheckOptions:
    """Which models are opened."""

    nudenet: bool
    checker: Path | None
    device: str
    threads: int

    @property
    def is_empty(self) -> bool:
        return not self.nudenet and self.checker is None


@dataclass(frozen=True)
class PictureToCheck:
    """RGB pixels, row by row; `size`: width and height."""

    size: tuple[int, int]
    pixels: bytes


Scores = dict[str, dict[str, float]]
"""By the model's name, then by label."""


class PictureModel(Protocol):
    name: str

    def scores(self, picture: Image.Image) -> dict[str, float]: ...


class CheckEngine:
    """Pictures wait in the order of their arrival."""

    def __init__(self, models: Sequence[PictureModel]) -> None:
        self.models, self._waiting = models, OrderedDict[int, PictureToCheck]()
        self.info: dict[str, Any] = {"models": [model.name for model in models], "step_seconds": TICK_SECONDS}
        self.device_time = DeviceTime("cpu")  # the scores of a model are on the CPU when it returns, so that nothing is left to wait for

    def self_test(self) -> None:
        """Each model sees a black picture, which finds a model of another form before the first order."""
        for model in self.models:
            model.scores(Image.new("RGB", (64, 64)))

    def submit(self, request_id: int, request: PictureToCheck) -> None:
        self._waiting[request_id] = request

    def cancel(self, request_id: int) -> bool:
        return self._waiting.pop(request_id, None) is not None

    def idle_seconds(self) -> float | None:
        return 0 if self._waiting else None

    def tick(self) -> Sequence[EngineEvent]:
        if not self._waiting:
            return ()
        request_id, request = self._waiting.popitem(last=False)
        with self.device_time.work_equally([request_id]):
            return Started(request_id), self._check(request_id, request)

    def _check(self, request_id: int, request: PictureToCheck) -> Finished | Failed:
        try:
            picture = Image.frombytes("RGB", request.size, request.pixels)
            return Finished(request_id, {model.name: model.scores(picture) for model in self.models})
        except Exception as error:
            if is_device_failure(error):
                raise
            return fail_request(request_id, error)

    def close(self) -> None:
        self.models = ()


def open_checks(options: CheckOptions, host: EngineHost) -> CheckEngine:
    """Raises what a model that cannot be loaded raises."""
    host.report_load_progress("loading", OPEN_SECONDS, None)
    models: list[PictureModel] = []
    if options.nudenet:
        from actors.engines.moderation.nudenet import NudeNet, packaged_model

        models.append(NudeNet(packaged_model(), options.threads))
    if options.checker:
        from actors.engines.moderation.safety_checker import SafetyChecker

        models.append(SafetyChecker(options.checker, options.device, options.threads))
    return CheckEngine(models)
