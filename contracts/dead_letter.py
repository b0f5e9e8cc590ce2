"""A dead letter as it is kept for operators; how to find, group, replay, edit and file it. A letter is one message that failed for good.

unresolved ──► replay-requested ──► resolved
    ▲   ▲            │    ▲
    │   └ archived   ▼    │
    │            failed-again
    └ every state may be archived but replay-requested; an archived letter is restored to unresolved
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from contracts.wire import Command, Result
from contracts.wire_model import WireModel

DeadLetterState = Literal["unresolved", "replay-requested", "resolved", "failed-again", "archived"]


FilterText = Annotated[str, Field(max_length=255, pattern=r"^[^\x00]*$")]
"""Text that Postgres can look for."""
Timestamp = Annotated[datetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), le=datetime(9000, 1, 1, tzinfo=UTC))]
"""A moment that every clock on the way can say."""


class Selection(WireModel):
    """Which letters are meant: those for which everything said here holds. `everything` must be set to mean all of them."""

    ids: list[FilterText] | None = Field(None, max_length=10_000)
    group: FilterText | None = Field(None, description="The id of a group: one cause.")
    step: FilterText | None = None
    code: FilterText | None = None
    exception_type: FilterText | None = None
    tenant: FilterText | None = None
    state: DeadLetterState | None = None
    job_id: FilterText | None = None
    message_id: FilterText | None = None
    since: Timestamp | None = Field(None, description="Failed last at this moment or later.")
    before: Timestamp | None = Field(None, description="Failed last before this moment.")
    everything: bool = False

    @property
    def has_filters(self) -> bool:
        """Whether it says more than `all of them`."""
        return bool(self.model_dump(exclude={"everything"}, exclude_none=True))


class ListDeadLetters(Command):
    """The youngest failure first."""

    selection: Selection = Field(default_factory=Selection)
    limit: int = Field(50, ge=1, le=500)
    offset: int = Field(0, ge=0)


class GroupDeadLetters(Command):
    """By cause: step, code, exception type and the shape of the stack; split further by tenant and by time if so asked."""

    selection: Selection = Field(default_factory=Selection)
    by_tenant: bool = False
    per: Literal["hour", "day"] | None = None


class GetDeadLetter(Command):
    id: FilterText


class ReplayDeadLetters(Command):
    """Send letters again, each to the queue that failed and to it alone, under the id it had."""

    selection: Selection
    again: bool = Field(False, description="Under a new id, so that the work is done even if it had been done.")
    per_second: float | None = Field(None, gt=0, le=100_000, description="At most so many a second; None: as fast as they are confirmed.")
    dry_run: bool = Field(True, description="Only say what would be done.")
    by: FilterText = Field("", description="Who asks, for the history.")


class EditDeadLetter(Command):
    """Send another body in place of a letter's own, under a new id. The letter itself is resolved by it."""

    id: FilterText
    body: dict[str, Any]
    dry_run: bool = True
    by: FilterText = ""


class MoveDeadLetters(Command):
    """File letters: archive, restore (to unresolved), or declare resolved what nobody will announce."""

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
    """One letter. `target` is the queue that failed, to which a replay goes; None when nothing tells it."""

    id: str
    state: DeadLetterState
    step: str
    dead_queue: str
    target: str | None = None
    message_id: str
    sent_as: str = Field(description="The id under which it was sent last: its own, unless work was forced under a new one.")
    job_id: str
    tenant: str | None = None
    type: str | None = None
    group_id: str
    code: str
    message: str = ""
    exception_type: str | None = None
    attempts: int = Field(1, ge=0)
    failures: int = Field(1, ge=1, description="How often it came to the dead letters.")
    replays: int = Field(0, ge=0, description="How often a replay was asked for.")
    size: int = Field(0, ge=0, description="Bytes of the body.")
    first_failed_at: datetime
    last_failed_at: datetime
    changed_at: datetime
    forwarded_at: datetime | None = Field(None, description="When the last replay was confirmed by the broker.")
    edited_from: str | None = Field(None, description="The letter of which this one was the edited copy.")


class WholeDeadLetter(DeadLetter):
    """One letter with its body, headers, stack and history. A body that is no UTF-8 stands in base64 instead."""

    origin_exchange: str | None = None
    origin_key: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] = Field(default_factory=dict)
    stack: str = ""
    body: str | None = None
    body_base64: str | None = None
    body_cut: bool = Field(False, description="The body is longer than what is shown here.")
    history: list[HistoryEntry] = Field(default_factory=list)


class DeadLetters(Result):
    letters: list[DeadLetter]
    total: int = Field(ge=0, description="How many match, beyond this page too.")


class DeadLetterGroup(WireModel):
    """Letters that died of one cause."""

    group_id: str
    step: str
    code: str
    exception_type: str | None = None
    tenant: str | None = None
    at: datetime | None = Field(None, description="The hour or day, when grouped by time.")
    message: str = Field("", description="What the youngest of them says.")
    shape: list[str] = Field(default_factory=list, description="The innermost frames, without line numbers.")
    letters: int
    states: dict[str, int] = Field(default_factory=dict)
    first_failed_at: datetime
    last_failed_at: datetime


class DeadLetterGroups(Result):
    groups: list[DeadLetterGroup]


class Replayed(Result):
    """What a replay sends, or (dry run) would send. Letters are sent in the background; `replay_id` names the request."""

    dry_run: bool
    letters: int
    replay_id: int | None = None
    ids: list[str] = Field(default_factory=list, description="The first of them.")
    without_target: int = Field(0, description="Letters left out, since nothing tells which queue failed.")


class Edited(Result):
    dry_run: bool
    id: str
    message_id: str | None = Field(None, description="The new message's id.")
    replay_id: int | None = None
    contract: str | None = Field(None, description="What the body was checked against; None: nobody knows the queue's contract.")


class Moved(Result):
    dry_run: bool
    to: str
    letters: int
