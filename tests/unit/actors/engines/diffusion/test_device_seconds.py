"""Device seconds of the orders of the diffusion engine, on tiny models: their sum is the time in which one of its two threads worked."""

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.requests import DiffusionRequest, EditSource, InputPicture
from actors.engines.process.device_time import DeviceTime
from actors.engines.process.protocol import Failed, Finished
from tests.support.engine_fixture import run_tick, run_to_end
from tests.unit.actors.engines.diffusion.test_diffusion_engine import make_request, random_request

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:peft"),
]  # fmt: skip
Interval = tuple[float, float]
CLOCK = time.process_time
"""It does not run for other processes, which may come between two readings of it. Both threads have the same one."""
RELATIVE_ERROR = 0.02
PICTURE = InputPicture("RGB", 64, 64, bytes(range(256)) * 48)
SMALL_MASK = InputPicture("L", 64, 64, b"\xff" + bytes(64 * 64 - 1))


class Stopwatch:
    """Measures the ticks of an engine and the work of its VAE's thread from outside."""

    def __init__(self, engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.intervals: list[Interval] = []
        for owner, name in ((engine, "tick"), (engine.vae_thread, "_work")):
            monkeypatch.setattr(owner, name, self._measured(getattr(owner, name)))

    def _measured(self, function: Any) -> Any:
        def call(*args: Any) -> Any:
            started = CLOCK()
            try:
                return function(*args)
            finally:
                self.intervals.append((started, CLOCK()))

        return call

    def busy_seconds(self) -> float:
        """The length of the union of the intervals."""
        seconds = end = 0.0
        for start, stop in sorted(self.intervals):
            seconds += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return seconds


def mixed_request(rng: random.Random, number: int, tiny: dict[str, Path]) -> DiffusionRequest:
    kind = rng.random()
    if kind < 0.2:
        return make_request(number, steps=6, edit=EditSource(PICTURE, strength=0.7))
    if kind < 0.35:
        return make_request(number, steps=6, edit=EditSource(PICTURE, SMALL_MASK))
    return random_request(rng, number, tiny)


@pytest.mark.parametrize("mix", range(3))
def test_orders_of_a_random_mix_cost_the_busy_time(
    mix: int, image_engine: DiffusionEngine, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes, LoRAs, edits, a mask that is refused, and cancels in every phase."""
    rng = random.Random(mix)
    image_engine.models.default()
    image_engine.device_time = image_engine.vae_thread.device_time = DeviceTime("cpu", CLOCK)
    stopwatch = Stopwatch(image_engine, monkeypatch)
    requests = {number: mixed_request(rng, number, tiny_models) for number in range(1, 13)}
    cancelled, ends = set[int](), dict[int, Finished | Failed]()
    for number, request in requests.items():
        image_engine.submit(number, request)
        for _ in range(rng.randrange(6)):
            ends |= {event.request_id: event for event in run_tick(image_engine) if isinstance(event, Finished | Failed)}
        if rng.random() < 0.4 and image_engine.cancel(chosen := rng.randrange(1, number + 1)):
            cancelled.add(chosen)
    ends |= run_to_end(image_engine, set(requests) - cancelled - set(ends))
    while image_engine.vae_thread._pending:
        run_tick(image_engine)
    busy_seconds, charged = image_engine.device_time.take()

    assert sum(charged.values()) == pytest.approx(busy_seconds)
    assert busy_seconds == pytest.approx(stopwatch.busy_seconds(), rel=RELATIVE_ERROR)
    assert charged.keys() >= ends.keys()
    assert Counter(type(event) for event in ends.values())[Finished] > 0


def test_a_picture_with_twice_the_steps_costs_about_twice(image_engine: DiffusionEngine) -> None:
    """Text and VAE are small beside the steps. The two take turns, so that both meet the same load."""
    image_engine.models.default()
    image_engine.device_time = image_engine.vae_thread.device_time = DeviceTime("cpu", CLOCK)
    run_alone(image_engine, make_request(steps=4))
    rounds = [[run_alone(image_engine, make_request(steps=steps))[1] for steps in (20, 40)] for _ in range(5)]
    one, two = map(min, zip(*rounds, strict=True))
    assert two / one == pytest.approx(2, rel=0.4)


def test_an_order_of_three_pictures_costs_three_of_four_rows(image_engine: DiffusionEngine) -> None:
    image_engine.models.default()
    charged = run_alone(image_engine, make_request(1, steps=20, count=3), make_request(9, steps=20))
    assert charged[1] / charged[2] == pytest.approx(3, rel=0.25)


def run_alone(engine: DiffusionEngine, *requests: DiffusionRequest) -> dict[int, float]:
    engine.device_time.take()
    for number, request in enumerate(requests, 1):
        engine.submit(number, request)
    run_to_end(engine, range(1, len(requests) + 1))
    return engine.device_time.take()[1]
