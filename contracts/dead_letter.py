"""Stored dead letters, and the commands to find, group, replay, edit and archive them. A letter is one message that failed for good.

unresolved ──► replay-requested ──► resolved
    ▲   ▲            │    ▲
    │   └ archived   ▼    │
    │            failed-again
    └ every state but replay-requested may be archived; an archived letter is restored to unresolved
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from contracts.wire import Command, Result
from contracts.wire_model import WireModel

DeadLetterState = Literal["unresolved", "replay-requested", "resolved", "failed-again", "archived"]

FilterText = Annotated[str, Field(max_length=255, pattern=r"^[^\x00]*$")]
"""Text that Postgres accepts."""

Timestamp = Annotated[datetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), le=datetime(9000, 1, 1, tzinfo=UTC))]
"""A time in the range of Python, JSON and Postgres, in every time zone."""


class Selection(WireModel):
    """A filter for letters: a letter must match every field that is set. `everything` must be set to select all letters."""

    ids: list[FilterText] | None = Field(None, max_length=10_000)
    group: FilterText | None = Field(None, description="The id of a group of letters with one cause.")
    step: FilterText | None = None
    code: FilterText | None = None
    exception_type: FilterText | None = None
    tenant: FilterText | None = None
    state: DeadLetterState | None = None
    job_id: FilterText | None = None
    message_id: FilterText | None = None
    since: Timestamp | None = Field(None, description="Last failed at this time or later.")
    before: Timestamp | None = Field(None, description="Last failed before this time.")
    everything: bool = False

    @property
    def has_filters(self) -> bool:
        """Whether any declared field besides `everything` is set."""
        return any(getattr(self, name) is not None for name in Selection.model_fields if name != "everything")


class ListDeadLetters(Command):
    """List letters, the latest failure first."""

    selection: Selection = Field(default_factory=Selection)
    limit: int = Field(50, ge=1, le=500)
    offset: int = Field(0, ge=0)


class GroupDeadLetters(Command):
    """Count letters by cause (step, code, exception type and stack fingerprint), and on request by tenant and by time."""

    selection: Selection = Field(default_factory=Selection)
    by_tenant: bool = False
    per: Literal["hour", "day"] | None = None


class GetDeadLetter(Command):
    """Get one letter with its body, headers, stack and history."""

    id: FilterText


class ReplayDeadLetters(Command):
    """Send letters again under their message ids, each only to the queue in which it failed."""

    selection: Selection
    again: bool = Field(False, description="Use a new message id, so that the work is repeated even if it had been done.")
    per_second: float | None = Field(
        None, gt=0, le=100_000, description="The maximum number of letters per second; None: as fast as the broker confirms them."
    )
    dry_run: bool = Field(True, description="Only report what would be done.")
    by: FilterText = Field("", description="The name of the operator, for the history.")


class EditDeadLetter(Command):
    """Send another body in place of a letter's own, under a new message id. The letter becomes resolved."""

    id: FilterText
    body: dict[str, Any]
    dry_run: bool = True
    by: FilterText = ""


class MoveDeadLetters(Command):
    """Change the state of letters: archive, restore (to unresolved), or resolve those whose completion no event reports."""

    selection: Selection
    to: Literal["archived", "unresolved", "resolved"]
    dry_run: bool = True
    by: FilterText = ""


class HistoryEntry(WireModel):
    """One entry of a letter's history: failed, replay-requested, sent, not-sent, resolved, archived, restored, edited, imported."""

    at: datetime
    kind: str
    said: dict[str, Any] = Field(default_factory=dict)


class DeadLetter(Result):
    """One letter. `target` is the queue in which it failed and to which a replay goes; None when it is unknown."""

    id: str
    state: DeadLetterState
    step: str
    dead_queue: str
    target: str | None = None
    message_id: str
    sent_as: str = Field(description="The message id under which it was last sent: `message_id`, unless a replay used a new one.")
    job_id: str
    tenant: str | None = None
    type: str | None = None
    group_id: str
    code: str
    message: str = ""
    exception_type: str | None = None
    attempts: int = Field(1, ge=0)
    failures: int = Field(1, ge=1, description="How often it became a dead letter.")
    replays: int = Field(0, ge=0, description="How often a replay was requested.")
    size: int = Field(0, ge=0, description="Size of the body in bytes.")
    first_failed_at: datetime
    last_failed_at: datetime
    changed_at: datetime
    forwarded_at: datetime | None = Field(None, description="When the broker confirmed the last replay.")
    edited_from: str | None = Field(None, description="The id of the letter of which this one is the edited copy.")


class TypedValue(WireModel):
    """A property, or a header, with its type in the protocol. A long value is cut."""

    name: str
    type: str
    value: str


class WholeDeadLetter(DeadLetter):
    """One letter with its body, headers, stack and history. A body that is not UTF-8 is in `body_base64` instead."""

    origin_exchange: str | None = None
    origin_key: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] = Field(default_factory=dict)
    properties: list[TypedValue] = Field(
        default_factory=list,
        description="The properties and headers with which the message died; empty for a dead letter of an earlier release.",
    )
    stack: str = ""
    body: str | None = None
    body_base64: str | None = None
    body_cut: bool = Field(False, description="The body is longer than the part in this message.")
    history: list[HistoryEntry] = Field(default_factory=list)


class DeadLetters(Result):
    """One page of letters."""

    letters: list[DeadLetter]
    total: int = Field(ge=0, description="The number of matches on all pages.")


class DeadLetterGroup(WireModel):
    """The letters of one cause."""

    group_id: str
    step: str
    code: str
    exception_type: str | None = None
    tenant: str | None = None
    at: datetime | None = Field(None, description="The hour or day, when grouped by time.")
    message: str = Field("", description="The message of the latest failure.")
    shape: list[str] = Field(default_factory=list, description="The innermost stack frames, without line numbers.")
    letters: int
    states: dict[str, int] = Field(default_factory=dict)
    first_failed_at: datetime
    last_failed_at: datetime


class DeadLetterGroups(Result):
    """The largest group first."""

    groups: list[DeadLetterGroup]


class ReplayDifference(WireModel):
    """In what the message of a replay differs from the message that died, and why it must."""

    name: str = Field(description="A property, such as reply_to, or `header` and its name.")
    change: Literal["added", "changed", "left out"]
    reason: str
    letters: int = Field(1, ge=0)
    died: str | None = Field(None, description="The value with which the first such dead letter died.")
    sent: str | None = Field(None, description="The value with which it is sent.")


class Replayed(Result):
    """What a replay sends, or on a dry run would send. Letters are sent in the background; `replay_id` identifies the replay."""

    dry_run: bool
    letters: int
    replay_id: int | None = None
    ids: list[str] = Field(default_factory=list, description="The first 20 letters.")
    without_target: int = Field(0, description="Letters left out because the queue in which they failed is unknown.")
    targets: dict[str, int] = Field(default_factory=dict, description="On a dry run: queue to dead letters.")
    differences: list[ReplayDifference] = Field(
        default_factory=list, description="On a dry run: in what the messages differ from those that died. All else is sent as it died."
    )
    compared: int = Field(0, description="On a dry run: how many dead letters were compared; at most 10,000, and for 5 s.")


class Edited(Result):
    """The result of an edit, or on a dry run of its checks."""

    dry_run: bool
    id: str
    message_id: str | None = Field(None, description="The id of the new message.")
    replay_id: int | None = None
    contract: str | None = Field(
        None, description="The contract against which the body was checked; None: the queue has no known contract."
    )
    differences: list[ReplayDifference] = Field(
        default_factory=list, description="In what else the message differs from the one that died."
    )


class Moved(Result):
    """How many letters changed their state, or on a dry run would."""

    dry_run: bool
    to: str
    letters: int
