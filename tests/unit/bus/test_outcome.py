"""The rules of fate, as a table."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from bus.errors import Abandoned, EngineDead, PermanentError, TemporaryError
from bus.outcome import Dead, Dropped, Outcome, Requeue, Retry, after_error, before_work, rung

DELAYS = (2.0, 30.0, 120.0)
RUNGS = (2.0, 30.0, 120.0, 600.0, 3600.0)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def fate(error: BaseException, attempt: int) -> tuple[object, ...]:
    match after_error(error, step="image", attempt=attempt, delays=DELAYS, rungs=RUNGS):
        case Retry(delay, _):
            return "retry", delay
        case Dead(fault):
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
        (EngineDead("x"), 1, ("requeue",)),
        (EngineDead("x"), 99, ("requeue",)),
        (Abandoned("x"), 1, ("dropped", "cancelled")),
        (asyncio.CancelledError(), 1, ("requeue",)),
        (TimeoutError(), 1, ("retry", 2.0)),
    ],
)
def test_fate_after_an_error(error: BaseException, attempt: int, expected: tuple[object, ...]) -> None:
    assert fate(error, attempt) == expected


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, None),
        ({"cancelled": True}, "cancelled"),
        ({"deadline": NOW}, "deadline-exceeded"),
        ({"deadline": NOW - timedelta(days=1)}, "deadline-exceeded"),
        ({"deadline": NOW + timedelta(microseconds=1)}, None),
        ({"returns": 9}, None),
        ({"returns": 10}, "crash-loop"),
        ({"returns": 10, "cancelled": True}, "cancelled"),
    ],
)
def test_fate_before_the_work(known: dict[str, object], expected: str | None) -> None:
    facts = {"step": "image", "attempt": 1, "returns": 0, "delivery_limit": 10, "deadline": None, "now": NOW, "cancelled": False} | known
    outcome: Outcome | None = before_work(**facts)  # type: ignore[arg-type]
    assert (outcome.fault.code if isinstance(outcome, Dead | Dropped) else outcome) == expected


def test_an_error_without_words_is_named_by_its_type() -> None:
    outcome = after_error(KeyError(), step="image", attempt=4, delays=DELAYS, rungs=RUNGS)
    assert isinstance(outcome, Dead)
    assert (outcome.fault.message, outcome.fault.exception_type) == ("KeyError", "KeyError")


def test_a_message_of_any_length_fits_a_header() -> None:
    outcome = after_error(PermanentError("x", "y" * 1_000_000), step="image", attempt=1, delays=DELAYS, rungs=RUNGS)
    assert isinstance(outcome, Dead)
    assert len(outcome.fault.message) == 2000


@pytest.mark.parametrize(("delay", "expected"), [(0, 2.0), (2, 2.0), (2.1, 30.0), (3600, 3600.0), (9e9, 3600.0)])
def test_the_rung_waits_at_least_as_long_as_asked(delay: float, expected: float) -> None:
    assert rung(delay, RUNGS) == expected
