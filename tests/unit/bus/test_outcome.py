"""The outcome rules, as tables."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from bus.errors import CallerGone, EngineCrashed, PermanentError, TemporaryError
from bus.outcome import DeadLettered, Dropped, Outcome, Requeue, Retry, after_error, precheck, round_up_delay

RETRY_DELAYS = (2.0, 30.0, 120.0)
DELAY_QUEUES = (2.0, 30.0, 120.0, 600.0, 3600.0)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def summarize(error: BaseException, attempt: int) -> tuple[object, ...]:
    match after_error(error, step="image", attempt=attempt, delays=RETRY_DELAYS, delay_queue_seconds=DELAY_QUEUES):
        case Retry(delay, _):
            return "retry", delay
        case DeadLettered(fault):
            return "dead", fault.code, fault.attempts
        case Requeue():
            return ("requeue",)
        case Dropped(fault):
            return "dropped", fault.code
        case outcome:
            return (outcome,)


@pytest.mark.parametrize(
    ("error", "attempt", "expected"),
    [
        (RuntimeError("x"), 1, ("retry", 2.0)),
        (RuntimeError("x"), 2, ("retry", 30.0)),
        (RuntimeError("x"), 3, ("retry", 120.0)),
        (RuntimeError("x"), 4, ("dead", "attempts-exhausted", 4)),
        (RuntimeError("x"), 99, ("dead", "attempts-exhausted", 99)),
        (TemporaryError("x"), 1, ("retry", 2.0)),
        (TemporaryError("x", delay=20), 1, ("retry", 30.0)),
        (TemporaryError("x", delay=300.0), 2, ("retry", 600.0)),
        (TemporaryError("x", delay=86_400), 1, ("retry", 3600.0)),
        (TemporaryError("x", delay=0), 3, ("retry", 2.0)),
        (TemporaryError("x", code="out-of-memory"), 4, ("dead", "out-of-memory", 4)),
        (PermanentError("lora-missing", "x"), 1, ("dead", "lora-missing", 1)),
        (PermanentError("lora-missing", "x"), 4, ("dead", "lora-missing", 4)),
        (EngineCrashed("x"), 1, ("requeue",)),
        (EngineCrashed("x"), 99, ("requeue",)),
        (CallerGone("x"), 1, ("dropped", "cancelled")),
        (asyncio.CancelledError(), 1, ("requeue",)),
        (TimeoutError(), 1, ("retry", 2.0)),
    ],
)
def test_error_is_retried_dead_lettered_requeued_or_dropped(error: BaseException, attempt: int, expected: tuple[object, ...]) -> None:
    assert summarize(error, attempt) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"cancelled": True}, "cancelled"),
        ({"deadline": NOW}, "deadline-exceeded"),
        ({"deadline": NOW - timedelta(days=1)}, "deadline-exceeded"),
        ({"deadline": NOW + timedelta(microseconds=1)}, None),
        ({"crash_count": 9}, None),
        ({"crash_count": 10}, "crash-loop"),
        ({"crash_count": 10, "cancelled": True}, "cancelled"),
    ],
)
def test_cancelled_expired_or_crash_looping_delivery_is_not_processed(changes: dict[str, object], expected: str | None) -> None:
    arguments = {"step": "image", "attempt": 1, "crash_count": 0, "delivery_limit": 10, "deadline": None, "now": NOW, "cancelled": False}
    outcome: Outcome | None = precheck(**(arguments | changes))  # type: ignore[arg-type]
    assert (outcome.fault.code if isinstance(outcome, DeadLettered | Dropped) else outcome) == expected


def test_error_without_message_uses_type_name() -> None:
    outcome = after_error(KeyError(), step="image", attempt=4, delays=RETRY_DELAYS, delay_queue_seconds=DELAY_QUEUES)
    assert isinstance(outcome, DeadLettered)
    assert (outcome.fault.message, outcome.fault.exception_type) == ("KeyError", "KeyError")


def test_long_error_message_is_shortened() -> None:
    """It must fit a header."""
    outcome = after_error(
        PermanentError("x", "y " * 1_000_000), step="image", attempt=1, delays=RETRY_DELAYS, delay_queue_seconds=DELAY_QUEUES
    )
    assert isinstance(outcome, DeadLettered)
    assert len(outcome.fault.message) == 2000


@pytest.mark.parametrize(("delay", "expected"), [(0, 2.0), (2, 2.0), (2.1, 30.0), (3600, 3600.0), (9e9, 3600.0)])
def test_retry_delay_is_at_least_requested_delay(delay: float, expected: float) -> None:
    assert round_up_delay(delay, DELAY_QUEUES) == expected
