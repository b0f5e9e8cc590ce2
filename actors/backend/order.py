"""What may be told after what was told: the order of calls for one generation. Pure; kept by `turns.py`.

Rule 1: a progress is told once, upwards only, and never after a complete or a failed has begun.
Rule 2: a failed is told once, and never after a complete has begun: the backend refunds at every call. One that had begun and whose answer
        nobody knows counts as told.
Rule 3: a complete is told until it is answered, also after a failed: then an operator has replayed the order, and the picture is there.
"""

from dataclasses import dataclass, replace
from typing import Literal

from contracts.webhook import Webhook

State = Literal["begun", "answered"]


@dataclass(frozen=True)
class Told:
    """What the backend was told of a generation. `begun`: sent perhaps, the answer not known."""

    percent: int | None = None
    complete: State | None = None
    complete_id: str | None = None
    failed: State | None = None


@dataclass(frozen=True)
class Untold:
    """The call is not made. `delivered`: because the backend has heard it already."""

    reason: str
    delivered: bool = False


def begin(told: Told, command: Webhook, message_id: str) -> Told | Untold:
    """What stands after the call has begun, or why it is not made."""
    match command.kind:
        case "progress":
            return begin_progress(told, command.progress.progress_percent if command.progress else 0)
        case "complete" if told.complete == "answered" and told.complete_id == message_id:
            return Untold("the backend has answered this complete already", delivered=True)
        case "complete":
            return replace(told, complete="begun", complete_id=message_id)
        case "failed" if told.complete:
            return Untold("the generation was told to be complete")
        case "failed" if told.failed == "answered":
            return Untold("the backend has answered a failed already", delivered=True)
        case "failed" if told.failed == "begun":
            return Untold("a failed was begun before and its answer is not known; a second one might refund twice")
        case "failed":
            return replace(told, failed="begun")


def begin_progress(told: Told, percent: int) -> Told | Untold:
    if told.complete or told.failed:
        return Untold("the generation's end was told already")
    if told.percent is not None and percent <= told.percent:
        return Untold(f"{told.percent} percent was told already")
    return replace(told, percent=percent)


def answered(told: Told, command: Webhook) -> Told:
    match command.kind:
        case "complete":
            return replace(told, complete="answered")
        case "failed":
            return replace(told, failed="answered")
        case "progress":
            return told


def untold(told: Told, command: Webhook) -> Told:
    """The backend has certainly not taken the call: a failed may be told again."""
    return replace(told, failed=None) if command.kind == "failed" else told
