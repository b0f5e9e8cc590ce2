"""The outcome of a delivery. Every rule is in this module; nothing here touches the network or the clock.

Rule 1: attempts are counted in our header. The broker's count only says how often a delivery was returned to the queue.
Rule 2: an error of another class than AttemptInterrupted, CallerGone, PermanentError and TemporaryError counts as temporary.
Rule 3: a requeue is never a retry; it is for an attempt that did not run to its end.
"""

import asyncio
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bus.errors import AttemptInterrupted, CallerGone, PermanentError, TemporaryError
from bus.masking import mask_error, mask_text
from contracts.fault import Fault
from contracts.wire import Result


@dataclass(frozen=True)
class Done:
    """`replies`: whether its result may be sent to `reply_to`; not when it was found under the message id alone."""

    result: Result
    replies: bool = True


@dataclass(frozen=True)
class Retry:
    delay: float
    fault: Fault


@dataclass(frozen=True)
class DeadLettered:
    """Published to the dead-letter queue with its cause. `stack`: the traceback, for the operator."""

    fault: Fault
    stack: str = ""


@dataclass(frozen=True)
class Dropped:
    """Ended without a result and without a dead letter.

    Its deadline has passed, its job was cancelled, its caller is gone, or it is a query that failed.
    """

    fault: Fault


@dataclass(frozen=True)
class Requeue:
    """Returned to the queue; the broker delivers it again."""

    reason: str


Outcome = Done | Retry | DeadLettered | Dropped | Requeue

FAULT_MESSAGE_LIMIT, STACK_LIMIT = 2000, 4000
"""Characters."""
EXPIRED = "deadline-exceeded"
CANCELLED = "cancelled"


def precheck(
    *, step: str, attempt: int, crash_count: int, delivery_limit: int, deadline: datetime | None, now: datetime, cancelled: bool
) -> Outcome | None:
    """The outcome that is certain before the handler runs; None when the handler is to run."""
    if cancelled:
        return Dropped(Fault(code=CANCELLED, message="The job was cancelled.", step=step, attempts=attempt))
    if deadline is not None and now >= deadline:
        message = f"The deadline {deadline.isoformat()} had passed before the step started."
        return Dropped(Fault(code=EXPIRED, message=message, step=step, attempts=attempt))
    if crash_count >= delivery_limit:
        message = f"The delivery was returned {crash_count} times: each process that took it died or lost its connection."
        return DeadLettered(Fault(code="crash-loop", message=message, step=step, attempts=attempt))
    return None


def after_error(
    error: BaseException, *, step: str, attempt: int, delays: Sequence[float], delay_queue_seconds: Sequence[float], stack: str = ""
) -> Outcome:
    """The outcome of an attempt that raised `error`.

    `delays`: the wait before attempt 2, 3, …; `delay_queue_seconds`: every wait that has a delay queue, the shortest first.
    """
    match error:
        case AttemptInterrupted() | asyncio.CancelledError():
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
    """A retry that would start after the deadline is dropped at once, if the error has a code that names its cause."""
    if not isinstance(outcome, Retry) or not isinstance(error, TemporaryError) or error.code == "attempts-exhausted":
        return outcome
    if deadline is None or now + timedelta(seconds=outcome.delay) < deadline:
        return outcome
    return Dropped(outcome.fault.model_copy(update={"code": error.code}))


def round_up_delay(delay: float, delay_queue_seconds: Sequence[float]) -> float:
    """The shortest retry delay of at least `delay` seconds, else the longest."""
    return next((wait for wait in delay_queue_seconds if wait >= delay), delay_queue_seconds[-1])


def fault_from_error(error: BaseException, code: str, step: str, attempt: int) -> Fault:
    message = _publishable(mask_error(error)[:FAULT_MESSAGE_LIMIT])
    return Fault(code=code, message=message, step=step, attempts=attempt, exception_type=type(error).__qualname__)


def format_stack(error: BaseException) -> str:
    """The end of the traceback, without secrets. An error's own text, which may quote the message, is in it and may be of any size."""
    return _publishable(mask_text("".join(traceback.format_exception(error)))[-STACK_LIMIT:])


def _publishable(text: str) -> str:
    """Without NUL characters and lone surrogates, which UTF-8 or Postgres refuse."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()
