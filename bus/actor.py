"""What an actor is: one step's command, result and limits, and how its handler is opened. No base class, no registry."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from asyncpg import Connection, Pool

from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts import broker_names
from contracts.event import Progress
from contracts.wire import Result
from contracts.wire_model import WireModel

ReportProgress = Callable[[Progress], Awaitable[None]]


SendDelta = Callable[[WireModel], Awaitable[None]]


DatabaseWrite = Callable[[Connection], Awaitable[None]]


@dataclass(frozen=True)
class Context:
    """What a handler may know of its delivery. `report` tells the world how far the work has come.

    `say` gives whoever awaits the reply a part of it beforehand, numbered from 0 in its field `sequence`; None when nobody does.
    """

    job_id: str
    message_id: str
    attempt: int
    tenant: str | None
    deadline: datetime | None
    report_progress: ReportProgress
    send_delta: SendDelta | None = None


@dataclass(frozen=True)
class Transactional:
    """A result together with a write, which the bus carries out in the very transaction that remembers the outcome.

    `settled` is called when that transaction is over, however it ended.
    """

    result: Result
    write: DatabaseWrite
    after_transaction: Callable[[], Awaitable[None]] | None = None


class Handler(Protocol):
    """Takes a command, returns a result. It never acks, publishes, retries or names the next stop."""

    async def __call__(self, command: Any, context: Context, /) -> Result | Transactional: ...


class Engine(Protocol):
    """What an actor shows of the engine that works for it."""

    async def unavailable_reason(self) -> str | None:
        """Why it would not answer now; None when it would."""
        ...

    def snapshot(self) -> Mapping[str, Any]:
        """What it counts, by the names of metrics; see `bus/observability/metrics.py`."""
        ...


@dataclass(frozen=True)
class Resources:
    """What the bus lends to an actor: the claim store, and the database pool when there is one.

    `unready` takes a word from the actor: why it can do no work for now, and None when it can again. `show` takes its engine.
    """

    claims: ClaimStore
    database: Pool | None = None
    set_unready: Callable[[str | None], None] = lambda _: None
    register_engine: Callable[[Engine], None] = lambda _: None


OpenHandler = Callable[[Resources], AbstractAsyncContextManager[Handler]]


@dataclass(frozen=True)
class Actor:
    """One step of the workshop.

    `timeout_seconds` bounds one run of the handler. `prefetch` is how many deliveries are in hand at once.
    `remembers` keeps outcomes in the inbox, so that the effect happens once; without it the work must be idempotent by its keys.
    `announces` publishes events about the work. A `question` is answered once, with a result or a fault: it is nobody's work, so it
    is never tried again nor buried. Without `expires` a deadline does not end it: it tells what was done, or that time was up.
    `schema` is idempotent DDL for the tables that the actor owns.
    """

    step: str
    command: type[WireModel]
    result: type[Result]
    open: OpenHandler
    timeout_seconds: float
    prefetch: int
    deduplicate: bool = True
    emit_events: bool = True
    is_query: bool = False
    enforce_deadline: bool = True
    schema: str = ""
    exchange: str = broker_names.COMMANDS_EXCHANGE
    routing_keys: tuple[str, ...] = field(default=())
    description: str = ""

    @property
    def queue(self) -> str:
        return broker_names.work_queue(self.step)

    @property
    def binding_keys(self) -> tuple[str, ...]:
        return self.routing_keys or (self.step,)


@dataclass(frozen=True)
class TranslatedCommand:
    """A command of ours. `message_id` must follow from the foreign message, so that the same order twice is done once."""

    step: str
    body: dict[str, Any]
    message_id: str
    job_id: str
    headers: dict[str, Any] = field(default_factory=dict)


class InvalidMessage(PermanentError):
    """The foreign message is no order. `told`: how to tell its sender, when that much could be read."""

    def __init__(self, code: str, message: str, *, notification: TranslatedCommand | None = None) -> None:
        super().__init__(code, message)
        self.notification = notification


@dataclass(frozen=True)
class Adapter:
    """`translate` is pure: bytes in, command out, or Unreadable."""

    name: str
    queue: str
    translate: Callable[[bytes], TranslatedCommand]
    prefetch: int = 16

    @property
    def step(self) -> str:
        return self.name
