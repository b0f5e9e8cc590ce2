"""What may be told after what was told: the order of calls for one generation. Pure; kept by `turns.py`.

Rule 1: a progress is told once, upwards only, and never after a complete or a failed has begun.
Rule 2: a failed is told once, and never after a complete has begun: the backend refunds at every call. One that had begun and whose answer
        nobody knows counts as told.
Rule 3: a complete is told until it is answered, also after a failed: then an operator has replayed the order, and the picture is there.
"""

from dataclasses import dataclass, replace
from typing import Literal

from contracts.webhook import Webhook

CallStatus = Literal["begun", "answered"]


@dataclass(frozen=True)
class DeliveryState:
    """What the backend was told of a generation. `begun`: sent perhaps, the answer not known."""

    percent: int | None = None
    complete: CallStatus | None = None
    complete_id: str | None = None
    failed: CallStatus | None = None


@dataclass(frozen=True)
class Skip:
    """The call is not made. `delivered`: because the backend has heard it already."""

    reason: str
    delivered: bool = False


def begin_call(state: DeliveryState, command: Webhook, message_id: str) -> DeliveryState | Skip:
    """What stands after the call has begun, or why it is not made."""
    match command.kind:
        case "progress":
            return begin_progress(state, command.progress.progress_percent if command.progress else 0)
        case "complete" if state.complete == "answered" and state.complete_id == message_id:
            return Skip("the backend has answered this complete already", delivered=True)
        case "complete":
            return replace(state, complete="begun", complete_id=message_id)
        case "failed" if state.complete:
            return Skip("the generation was told to be complete")
        case "failed" if state.failed == "answered":
            return Skip("the backend has answered a failed already", delivered=True)
        case "failed" if state.failed == "begun":
            return Skip("a failed was begun before and its answer is not known; a second one might refund twice")
        case "failed":
            return replace(state, failed="begun")


def begin_progress(state: DeliveryState, percent: int) -> DeliveryState | Skip:
    if state.complete or state.failed:
        return Skip("the generation's end was told already")
    if state.percent is not None and percent <= state.percent:
        return Skip(f"{state.percent} percent was told already")
    return replace(state, percent=percent)


def mark_answered(state: DeliveryState, command: Webhook) -> DeliveryState:
    match command.kind:
        case "complete":
            return replace(state, complete="answered")
        case "failed":
            return replace(state, failed="answered")
        case "progress":
            return state


def revert_begin(state: DeliveryState, command: Webhook) -> DeliveryState:
    """The backend has certainly not taken the call: a failed may be told again."""
    return replace(state, failed=None) if command.kind == "failed" else state
