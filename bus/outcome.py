"""What becomes of a delivery. Everything that decides it stands in this file; nothing here touches the network or the clock.

Rule 1: an attempt is counted in our header. The broker's count tells only how often a delivery came back.
Rule 2: whatever is neither temporary nor permanent by its own word is temporary, but bounded.
Rule 3: putting a message back (requeue) is never a retry; it is for work that was not tried to its end.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bus.errors import CallerGone, EngineCrashed, PermanentError, TemporaryError
from contracts.fault import Fault
from contracts.wire import Result


@dataclass(frozen=True)
class Done:
    result: Result


@dataclass(frozen=True)
class Retry:
    delay: float
    fault: Fault


@dataclass(frozen=True)
class DeadLettered:
    """Buried, with its cause. `stack` is for the operator."""

    fault: Fault
    stack: str = ""


@dataclass(frozen=True)
class Dropped:
    """Ended without an effect and without a dead letter: its deadline has passed, or it was cancelled."""

    fault: Fault


@dataclass(frozen=True)
class Requeue:
    """Left to the broker, which delivers it again."""

    reason: str


Outcome = Done | Retry | DeadLettered | Dropped | Requeue

EXPIRED = "deadline-exceeded"
CANCELLED = "cancelled"


def precheck(
    *, step: str, attempt: int, crash_count: int, delivery_limit: int, deadline: datetime | None, now: datetime, cancelled: bool
) -> Outcome | None:
    """What is already decided before the handler runs; None when the work is to be done."""
    if cancelled:
        return Dropped(Fault(code=CANCELLED, message="The job was cancelled.", step=step, attempts=attempt))
    if deadline is not None and now >= deadline:
        message = f"The deadline {deadline.isoformat()} had passed before the work began."
        return Dropped(Fault(code=EXPIRED, message=message, step=step, attempts=attempt))
    if crash_count >= delivery_limit:
        message = f"The delivery came back {crash_count} times: whoever takes it dies or loses its connection."
        return DeadLettered(Fault(code="crash-loop", message=message, step=step, attempts=attempt))
    return None


def after_error(
    error: BaseException, *, step: str, attempt: int, delays: Sequence[float], delay_queue_seconds: Sequence[float], stack: str = ""
) -> Outcome:
    """`delays`: the wait before run 2, 3, …; `rungs`: every wait there is a queue for, the shortest first."""
    match error:
        case EngineCrashed() | asyncio.CancelledError():
            return Requeue(str(error) or type(error).__name__)
        case CallerGone():
            return Dropped(fault_from_error(error, CANCELLED, step, attempt))
        case PermanentError(code=code):
            return DeadLettered(fault_from_error(error, code, step, attempt), stack)
        case TemporaryError(code=code) if attempt > len(delays):
            return DeadLettered(fault_from_error(error, code, step, attempt), stack)
        case _ if attempt > len(delays):
            return DeadLettered(fault_from_error(error, "attempts-exhausted", step, attempt), stack)
        case TemporaryError(delay=float() | int() as delay):
            return Retry(round_up_delay(delay, delay_queue_seconds), fault_from_error(error, "temporary", step, attempt))
        case _:
            return Retry(delays[attempt - 1], fault_from_error(error, "temporary", step, attempt))


def drop_if_past_deadline(outcome: Outcome, error: BaseException, deadline: datetime | None, now: datetime) -> Outcome:
    """A retry that would come after the deadline is not made: the cause is told at once, where it has a name, to whoever still waits."""
    late = isinstance(outcome, Retry) and deadline is not None and now + timedelta(seconds=outcome.delay) >= deadline
    if not (late and isinstance(outcome, Retry) and isinstance(error, TemporaryError) and error.code != "attempts-exhausted"):
        return outcome
    return Dropped(outcome.fault.model_copy(update={"code": error.code}))


def round_up_delay(delay: float, delay_queue_seconds: Sequence[float]) -> float:
    """The shortest rung that waits at least `delay` seconds, else the longest there is."""
    return next((wait for wait in delay_queue_seconds if wait >= delay), delay_queue_seconds[-1])


def fault_from_error(error: BaseException, code: str, step: str, attempt: int) -> Fault:
    message = str(error) or type(error).__name__
    return Fault(code=code, message=message[:2000], step=step, attempts=attempt, exception_type=type(error).__qualname__)
