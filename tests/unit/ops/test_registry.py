"""Which process serves which step: the vision steps share one, so that a device has one copy of their model."""

from argparse import Namespace

import pytest

from contracts.itineraries import ITINERARIES
from ops import up
from ops.errors import SetupError
from ops.registry import MODULES, OPTIONAL, PROCESS_GROUPS, expand_groups, load_actors, processes_of


def test_whole_stack_has_one_process_for_the_vision_steps() -> None:
    processes = processes_of(list(MODULES))
    assert "vision" in processes
    assert not set(PROCESS_GROUPS["vision"]) & set(processes)
    assert sorted(expand_groups(processes)) == sorted(MODULES)


def test_some_steps_of_a_group_share_one_process_wherever_they_are_named() -> None:
    assert processes_of(["judge", "upload", "consult", "judge"]) == ["judge consult", "upload"]
    assert processes_of(["vision", "judge"]) == ["vision"]
    assert processes_of(["judge", "validate", "consult"]) == ["vision"]


def test_group_is_loaded_by_its_name() -> None:
    assert {actor.step for actor in load_actors(["vision"]).actors} == {*PROCESS_GROUPS["vision"], "consult.ready"}


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match=r"No actor serves sculpture\..*image.*vision"):
        processes_of(["upload", "sculpture"])


def test_optional_step_is_in_no_standard_itinerary_and_starts_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    async def record(processes: list[str], _steps: list[str], _settings: object) -> None:
        started[:] = processes

    monkeypatch.setattr(up, "run_until_stopped", record)
    assert not OPTIONAL & {step.step for itinerary in ITINERARIES.values() for step in itinerary.steps}
    for named in ([], [*OPTIONAL]):
        up.up(Namespace(steps=named))
        assert OPTIONAL & set(started) == set(named)
