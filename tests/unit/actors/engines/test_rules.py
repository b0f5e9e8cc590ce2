"""The pure rules of the executor: turns, blame, the breaker, company for a batch, milestones."""

from collections.abc import Sequence

import pytest

from actors.engines.batching import DynamicBatch
from actors.engines.blame import Blame
from actors.engines.breaker import Breaker
from actors.engines.milestones import Milestones
from actors.engines.protocol import Advanced, Death
from actors.engines.turns import Turns
from bus.errors import PermanentError, TemporaryError

CRASH, HANG, KILLED, MEMORY = (Death(cause, "why") for cause in ("crash", "hang", "killed", "memory"))  # type: ignore[arg-type]


def test_tenants_take_turns_and_each_keeps_its_own_order() -> None:
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        turns.add(item[0], item)
    assert [turns.take() for _ in range(len(turns))] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_work_that_comes_back_keeps_its_turn() -> None:
    turns: Turns[str] = Turns()
    turns.add("a", "a1")
    turns.add("b", "b1")
    turns.add("b", "b0", first=True)
    assert turns.peek() == "b0"
    assert [turns.take() for _ in range(3)] == ["b0", "a1", "b1"]


def test_one_is_taken_out_of_the_middle_and_no_other() -> None:
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "b1"):
        turns.add(item[0], item)
    assert turns.drop("a", "a1")
    assert not turns.drop("a", "a1")
    assert not turns.drop("z", "a2")
    assert turns.clear() == ["a2", "b1"]
    assert turns.peek() is None


@pytest.mark.parametrize(
    ("deaths", "verdict"),
    [
        ([(CRASH, False)], None),
        ([(CRASH, True)], None),
        ([(CRASH, False), (CRASH, True)], "engine-crash"),
        ([(HANG, True), (CRASH, True)], "engine-crash"),
        ([(CRASH, False), (CRASH, False)], None),
        ([(KILLED, False), (KILLED, True)], None),
        ([(KILLED, True), (KILLED, True)], None),
        ([(KILLED, True), (KILLED, True), (KILLED, True)], "engine-crash"),
        ([(MEMORY, True)], None),
        ([(MEMORY, False), (MEMORY, True)], "out-of-memory"),
    ],
)
def test_who_is_convicted(deaths: Sequence[tuple[Death, bool]], verdict: str | None) -> None:
    blame = Blame()
    for death, alone in deaths:
        blame.died(death, alone=alone)
    error = blame.verdict(deaths[-1][0])
    assert getattr(error, "code", None) == verdict
    kind = {"engine-crash": PermanentError, "out-of-memory": TemporaryError}.get(verdict or "", type(None))
    assert isinstance(error, kind)


def test_the_breaker_waits_longer_each_time_and_then_opens() -> None:
    breaker, waits = Breaker(threshold=5, first_seconds=1, longest_seconds=30), []
    for _ in range(5):
        breaker.failed()
        waits.append(breaker.wait_seconds())
    assert waits == [0, 1, 2, 4, 30]
    assert breaker.open
    breaker.worked()
    assert not breaker.open
    assert breaker.wait_seconds() == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_batch_goes_when_it_is_full_or_when_its_first_has_waited_long_enough() -> None:
    clock = Clock()
    batch: DynamicBatch[int] = DynamicBatch(3, 0.01, clock)
    assert batch.wait_seconds() is None
    batch.add("a", 1)
    clock.now = 0.004
    batch.add("b", 10)
    assert batch.take() == []
    assert batch.wait_seconds() == pytest.approx(0.006)
    for item in (2, 3, 4):
        batch.add("a", item)
    assert batch.wait_seconds() == 0
    assert batch.take() == [1, 2, 3]
    clock.now = 0.014
    assert batch.take() == [10]
    assert batch.take() == [4]


def test_what_is_dropped_never_joins_a_batch() -> None:
    batch: DynamicBatch[int] = DynamicBatch(3, 0.0, Clock())
    for item in (1, 2, 3):
        batch.add("a", item)
    assert batch.drop(lambda item: item == 2) == [2]
    assert batch.take() == [1, 3]
    assert len(batch) == 0


def told(total: int, steps: Sequence[int]) -> list[tuple[int, int]]:
    milestones = Milestones(total, Clock())
    said = [milestones.take(Advanced(1, step, total)) for step in steps]
    return [(one.current_step, one.progress_percent) for one in said if one]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (50, [(0, 0), (13, 26), (25, 50), (38, 76), (45, 90)]),
        (20, [(0, 0), (5, 25), (10, 50), (15, 75), (18, 90)]),
        (3, [(0, 0), (1, 33), (2, 66), (3, 100)]),
        (1, [(0, 0), (1, 100)]),
    ],
)
def test_progress_is_told_once_for_each_milestone_with_the_real_percent(total: int, expected: list[tuple[int, int]]) -> None:
    assert told(total, range(total + 1)) == expected


def test_an_order_that_begins_anew_after_a_crash_is_not_told_backwards() -> None:
    assert told(50, [*range(30), *range(51)]) == [(0, 0), (13, 26), (25, 50), (38, 76), (45, 90)]


def test_the_time_still_to_go_is_measured_and_not_guessed() -> None:
    clock = Clock()
    milestones = Milestones(50, clock)
    clock.now = 100.0
    milestones.take(Advanced(1, 0, 50))
    clock.now = 105.0
    said = milestones.take(Advanced(1, 25, 50))
    assert said
    assert said.estimated_seconds == 5
