"""Rules for the order of a generation's webhook calls. Pure; `delivery_lock.py` stores the state.

Rule 1: each progress is sent once, in ascending order, and never after a complete or a failed call has begun.
Rule 2: a failed is sent once, and never after a complete has begun, because the backend refunds at every call. One that has begun and whose
        response is unknown counts as sent.
Rule 3: a complete is sent until the backend has accepted it, also after a failed: then an operator has replayed the order, and the picture
        exists.
Rule 4: a generation belongs to the tenant of its first call; another tenant's call is refused. The installation itself (no tenant), for
        which the backend's own queue speaks, may call for every generation, and takes it over: a tenant that guesses ids stops no order.
"""

from dataclasses import dataclass, replace
from typing import Literal

from bus.errors import PermanentError
from contracts.webhook import Webhook

CallStatus = Literal["begun", "answered"]
INSTALLATION = ""
"""The owner of the generations that belong to no tenant."""


@dataclass(frozen=True)
class DeliveryState:
    """The calls of one generation so far. `begun`: possibly sent, the response is unknown; `answered`: accepted by the backend.

    `owner`: the tenant, or INSTALLATION. None: no call yet, or the previous release made them, which knew no owners.
    """

    percent: int | None = None
    complete: CallStatus | None = None
    complete_id: str | None = None
    failed: CallStatus | None = None
    owner: str | None = None


@dataclass(frozen=True)
class Skip:
    """The call is not made. `delivered`: because the backend has already accepted it."""

    reason: str
    delivered: bool = False


def claim_generation(state: DeliveryState, generation_id: int, tenant: str | None) -> DeliveryState:
    """The state with its owner. Raises PermanentError("generation-foreign") when the generation belongs to another tenant.

    A generation without an owner goes to the caller while it is running; one that has ended belongs to the installation.
    """
    ended = state.complete == "answered" or state.failed is not None
    owner = INSTALLATION if state.owner is None and ended else state.owner
    if tenant and owner not in (None, tenant):
        whose = "another tenant" if owner else "the installation"
        message = f"generation {generation_id} belongs to {whose}: order with a generation id of your own, or without one"
        raise PermanentError("generation-foreign", message)
    return replace(state, owner=tenant or INSTALLATION)


def begin_call(state: DeliveryState, command: Webhook, message_id: str) -> DeliveryState | Skip:
    """The state once the call has begun, or why it is not made."""
    match command.kind:
        case "progress":
            return begin_progress(state, command.progress.progress_percent if command.progress else 0)
        case "complete" if state.complete == "answered" and state.complete_id == message_id:
            return Skip("the backend has already accepted this complete", delivered=True)
        case "complete":
            return replace(state, complete="begun", complete_id=message_id)
        case "failed" if state.complete:
            return Skip("a complete was already sent for the generation")
        case "failed" if state.failed == "answered":
            return Skip("the backend has already accepted a failed", delivered=True)
        case "failed" if state.failed == "begun":
            return Skip("a failed was begun before and its response is unknown; a second one might refund twice")
        case "failed":
            return replace(state, failed="begun")


def begin_progress(state: DeliveryState, percent: int) -> DeliveryState | Skip:
    if state.complete or state.failed:
        return Skip("the generation's end was already sent")
    if state.percent is not None and percent <= state.percent:
        return Skip(f"{state.percent} percent was already sent")
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
    """The backend has certainly not accepted the call: a failed may be sent again."""
    return replace(state, failed=None) if command.kind == "failed" else state
