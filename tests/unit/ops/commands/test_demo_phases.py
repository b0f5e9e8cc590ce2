"""The phases of the demo: they follow each other, add up to the total, and are printed in one line."""

import time

import pytest

from ops.commands.demo import toy_threads
from ops.commands.demo_phases import PhaseClock, format_phases
from ops.local.model_choice import ModelChoice


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the clock reads; the processor time until then is 0.5 s."""
    moments = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: moments[-1])
    monkeypatch.setattr(time, "process_time", lambda: 0.5)
    return moments


def test_phases_follow_each_other_and_add_up_to_the_total(now: list[float]) -> None:
    clock = PhaseClock()
    for moment, phase in ((102.1, "services"), (104.0, "workers"), (104.25, "image"), (105.0, "workers")):
        now.append(moment)
        clock.finish(phase)

    assert clock.seconds == {"start": 0.5, "services": 2.1, "workers": 2.65, "image": 0.25}
    assert clock.total_seconds == pytest.approx(0.5 + 5.0) == pytest.approx(sum(clock.seconds.values()))


def test_phases_are_printed_in_one_line_without_those_that_round_to_nothing() -> None:
    assert format_phases({"start": 0.61, "models": 0.01, "services": 2.14, "image": 12.0}) == "start 0.6 s · services 2.1 s · image 12.0 s"


def test_toys_run_on_one_thread_and_named_models_as_they_like() -> None:
    toys = [ModelChoice("image", "tiny-shapes", "", is_toy=True), ModelChoice("validate judge", "tiny-critic", "", is_toy=True)]

    assert toy_threads([*toys, ModelChoice("text", "org/name", "")]) == {"IMAGE_THREADS": "1", "VLM_THREADS": "1"}
    assert toy_threads([ModelChoice("text", "tiny-writer", "", is_toy=True)]) == {"TEXT_THREADS": "1"}
