"""The pure rules of the executor: fair queue, crash attribution, circuit breaker."""

from collections.abc import Sequence

import pytest

from actors.engines.process.fair_queue import FairQueue
from actors.engines.process.protocol import ProcessExit
from actors.engines.process.restart import CircuitBreaker, CrashAttribution
from bus.errors import PermanentError, TemporaryError

CRASH, HANG, KILLED, MEMORY, DEVICE = (ProcessExit(cause, "why") for cause in ("crash", "hang", "killed", "memory", "device"))  # type: ignore[arg-type]


def test_fair_queue_alternates_tenants_in_fifo_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.push(item[0], item)
    assert [queue.pop() for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_item_queued_at_the_front_is_next() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", "a1")
    queue.push("b", "b1")
    queue.push("b", "b0", front=True)
    assert queue.peek() == "b0"
    assert [queue.pop() for _ in range(3)] == ["b0", "a1", "b1"]


def test_remove_takes_only_the_named_item_and_clear_returns_the_rest() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "b1"):
        queue.push(item[0], item)
    assert queue.remove("a", "a1")
    assert not queue.remove("a", "a1")
    assert not queue.remove("z", "a2")
    assert queue.clear() == ["a2", "b1"]
    assert queue.peek() is None


@pytest.mark.parametrize(
    ("exits", "code"),
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
        ([(DEVICE, True)], None),
        ([(DEVICE, False), (DEVICE, True)], "device-failed"),
        ([(DEVICE, True), (DEVICE, True), (DEVICE, True)], "device-failed"),
    ],
)
def test_crash_attribution_blames_request_by_exit_history(exits: Sequence[tuple[ProcessExit, bool]], code: str | None) -> None:
    """`exits`: each exit, and whether the request was alone."""
    crashes = CrashAttribution()
    for process_exit, alone in exits:
        crashes.record_exit(process_exit, alone=alone)
    error = crashes.error_for(exits[-1][0])
    assert getattr(error, "code", None) == code
    kind = {"engine-crash": PermanentError, "out-of-memory": TemporaryError, "device-failed": TemporaryError}.get(code or "", type(None))
    assert isinstance(error, kind)


def test_circuit_breaker_backs_off_then_opens() -> None:
    breaker, delays = CircuitBreaker(threshold=5, initial_delay_seconds=1, max_delay_seconds=30), []
    for _ in range(5):
        breaker.record_exit(CRASH, had_requests=False)
        delays.append(breaker.restart_delay_seconds())
    assert delays == [0, 1, 2, 4, 30]
    assert breaker.open
    breaker.record_success()
    assert not breaker.open
    assert breaker.restart_delay_seconds() == 0


def test_exit_with_requests_counts_for_breaker_only_when_it_came_from_outside() -> None:
    """No input opens the breaker: a process that had requests had passed its self-test."""
    breaker = CircuitBreaker(threshold=2, initial_delay_seconds=1, max_delay_seconds=30)
    for process_exit in (CRASH, HANG, MEMORY) * 3:
        breaker.record_exit(process_exit, had_requests=True)
    assert (breaker.failures, breaker.restart_delay_seconds()) == (0, 0)
    assert breaker.after_crash, "the next process is tested more thoroughly"
    for process_exit in (KILLED, DEVICE):
        breaker.record_exit(process_exit, had_requests=True)
    assert breaker.open
    breaker.record_success()
    assert (breaker.open, breaker.after_crash) == (False, False)
