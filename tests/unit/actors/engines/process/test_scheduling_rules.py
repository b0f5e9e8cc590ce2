"""The pure rules of the executor: turns, blame, the breaker, company for a batch, milestones."""

from collections.abc import Sequence

import pytest

from actors.engines.diffusion.batching import DynamicBatch
from actors.engines.diffusion.progress import ProgressThrottle
from actors.engines.process.fair_queue import FairQueue
from actors.engines.process.protocol import ProcessExit, Progressed
from actors.engines.process.restart import CircuitBreaker, CrashAttribution
from bus.errors import PermanentError, TemporaryError

CRASH, HANG, KILLED, MEMORY = (ProcessExit(cause, "why") for cause in ("crash", "hang", "killed", "memory"))  # type: ignore[arg-type]


def test_fair_queue_alternates_tenants_in_fifo_order() -> None:
    turns: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        turns.push(item[0], item)
    assert [turns.pop() for _ in range(len(turns))] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_requeued_work_keeps_position() -> None:
    turns: FairQueue[str] = FairQueue()
    turns.push("a", "a1")
    turns.push("b", "b1")
    turns.push("b", "b0", front=True)
    assert turns.peek() == "b0"
    assert [turns.pop() for _ in range(3)] == ["b0", "a1", "b1"]


def test_fair_queue_drop_removes_only_named_item() -> None:
    turns: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "b1"):
        turns.push(item[0], item)
    assert turns.remove("a", "a1")
    assert not turns.remove("a", "a1")
    assert not turns.remove("z", "a2")
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
def test_crash_attribution_blames_request_by_exit_history(deaths: Sequence[tuple[ProcessExit, bool]], verdict: str | None) -> None:
    blame = CrashAttribution()
    for death, alone in deaths:
        blame.record_exit(death, alone=alone)
    error = blame.error_for(deaths[-1][0])
    assert getattr(error, "code", None) == verdict
    kind = {"engine-crash": PermanentError, "out-of-memory": TemporaryError}.get(verdict or "", type(None))
    assert isinstance(error, kind)


def test_circuit_breaker_backs_off_then_opens() -> None:
    breaker, waits = CircuitBreaker(threshold=5, initial_delay_seconds=1, max_delay_seconds=30), []
    for _ in range(5):
        breaker.record_failure()
        waits.append(breaker.restart_delay_seconds())
    assert waits == [0, 1, 2, 4, 30]
    assert breaker.open
    breaker.record_success()
    assert not breaker.open
    assert breaker.wait_seconds() == 0


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_batch_closes_when_full_or_first_item_waited() -> None:
    clock = FakeClock()
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


def test_dropped_item_is_not_batched() -> None:
    batch: DynamicBatch[int] = DynamicBatch(3, 0.0, FakeClock())
    for item in (1, 2, 3):
        batch.add("a", item)
    assert batch.drop(lambda item: item == 2) == [2]
    assert batch.take() == [1, 3]
    assert len(batch) == 0


def reported_progress(total: int, steps: Sequence[int]) -> list[tuple[int, int]]:
    milestones = ProgressThrottle(total, FakeClock())
    said = [milestones.report_for(Progressed(1, step, total)) for step in steps]
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
def test_progress_is_reported_once_per_milestone(total: int, expected: list[tuple[int, int]]) -> None:
    assert reported_progress(total, range(total + 1)) == expected


def test_progress_never_decreases_after_restart() -> None:
    assert reported_progress(50, [*range(30), *range(51)]) == [(0, 0), (13, 26), (25, 50), (38, 76), (45, 90)]


def test_remaining_time_is_estimated_from_measured_steps() -> None:
    clock = FakeClock()
    milestones = ProgressThrottle(50, clock)
    clock.now = 100.0
    milestones.report_for(Progressed(1, 0, 50))
    clock.now = 105.0
    said = milestones.report_for(Progressed(1, 25, 50))
    assert said
    assert said.estimated_seconds == 5
