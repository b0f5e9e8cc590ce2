"""Actors and adapters as data: the command, result and limits of one step, and how its handler is opened. No base class, no registry."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from asyncpg import Connection, Pool

from bus.errors import PermanentError
from bus.persistence.session_locks import SessionLocks
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
    """What a handler knows of its delivery. `report_progress` publishes a progress event.

    `send_delta` sends a part of the reply ahead of it, numbered from 0 in its field `sequence`; None when nobody awaits a reply.
    `message_id` names what the message has done, also before the upgrade to keyed ids; `keyed_id` is the id in its events.
    `runs_again`: whether another attempt follows before the deadline, if the handler raises this error.
    """

    job_id: str
    message_id: str
    attempt: int
    tenant: str | None
    deadline: datetime | None
    report_progress: ReportProgress
    send_delta: SendDelta | None = None
    keyed_message_id: str | None = None
    runs_again: Callable[[Exception], bool] = lambda _: True

    @property
    def keyed_id(self) -> str:
        return self.keyed_message_id or self.message_id

    def resolve_tenant(self, named: str | None) -> str | None:
        """The tenant to act for: the delivery's; the one that the body names only for a delivery without one, which is the installation's.

        Raises PermanentError("tenant-foreign") when the body names another tenant than the delivery.
        """
        if self.tenant and named not in (None, self.tenant):
            message = f"the message belongs to the tenant {self.tenant!r}, its body names another one: leave the tenant out of the body"
            raise PermanentError("tenant-foreign", message)
        return self.tenant or named


@dataclass(frozen=True)
class GroupableWrite:
    """A `DatabaseWrite` of one item that a statement may write together with the items of other messages (group commit).

    `write_many` leaves no session state. When it fails, none of its items is written, and they are written again, in a group or
    alone. `size`: of the item, in characters.
    """

    write_many: Callable[[Connection, Sequence[Any]], Awaitable[None]]
    item: Any
    size: int = 0

    async def __call__(self, connection: Connection) -> None:
        await self.write_many(connection, [self.item])


@dataclass(frozen=True)
class Transactional:
    """A result together with a database write, which runs in the transaction that marks the message done.

    `after_transaction` is called when that transaction has ended, committed or not.
    """

    result: Result
    write: DatabaseWrite
    after_transaction: Callable[[], Awaitable[None]] | None = None


class Handler(Protocol):
    """Takes a command, returns a result. It never acknowledges, publishes, retries or names the next step."""

    async def __call__(self, command: Any, context: Context, /) -> Result | Transactional: ...


class ObservableEngine(Protocol):
    """What an actor exposes of its engine to health checks and metrics."""

    async def unavailable_reason(self) -> str | None:
        """Why it cannot process requests now; None when it can."""
        ...

    def snapshot(self) -> Mapping[str, Any]:
        """Its counters and gauges by metric name; see `bus/observability/metrics.py`."""
        ...


@dataclass(frozen=True)
class Resources:
    """What the worker provides to an actor: the claim store, and the database pool when there is one.

    `set_unready` takes the reason why the actor can process nothing for now, None when it can again; its consumer is paused meanwhile.
    `register_engine` adds its engine to health checks and metrics.
    """

    claims: ClaimStore
    database: Pool | None = None
    set_unready: Callable[[str | None], None] = lambda _: None
    register_engine: Callable[[ObservableEngine], None] = lambda _: None
    shared: dict[Hashable, Any] = field(default_factory=dict)
    """What the actors of one worker share, such as an engine: one dictionary for all of them; see `actors/engines/shared_resource.py`."""
    locks: SessionLocks | None = None
    """Advisory locks between processes; present where the database is."""

    def require_database(self, missing: str) -> Pool:
        """The pool. Raises PermanentError("database-missing", missing) without one."""
        if self.database is None:
            raise PermanentError("database-missing", missing)
        return self.database

    def require_locks(self, missing: str) -> SessionLocks:
        """The locks. Raises PermanentError("database-missing", missing) without a database."""
        if self.locks is None:
            raise PermanentError("database-missing", missing)
        return self.locks


OpenHandler = Callable[[Resources], AbstractAsyncContextManager[Handler]]


@dataclass(frozen=True)
class Actor:
    """One step.

    `timeout_seconds` bounds one run of the handler. `prefetch`: how many deliveries are in flight at once.
    `deduplicate` keeps results in the inbox, so that the effect happens once; without it the handler must be idempotent.
    `emit_events` publishes events about each run. An `is_query` command gets one reply, a result or a fault: it is neither retried nor
    dead-lettered. Without `enforce_deadline` the step runs past the deadline of its job, as one that reports the end of a job must.
    `schema`: idempotent DDL of the tables that the actor owns.
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


def with_database(handler: Callable[..., Coroutine[Any, Any, Result | Transactional]], missing: str) -> OpenHandler:
    """Opens `handler` with the pool as its keyword argument `database`; `missing`: the error message without a pool."""

    @asynccontextmanager
    async def open_handler(resources: Resources) -> AsyncIterator[Handler]:
        yield partial(handler, database=resources.require_database(missing))

    return open_handler


def query_actor(
    step: str,
    command: type[WireModel],
    result: type[Result],
    open_handler: OpenHandler,
    description: str,
    *,
    timeout_seconds: float,
    prefetch: int,
    schema: str = "",
) -> Actor:
    """An actor that only answers questions: no inbox, no events, no retries, no dead letters."""
    return Actor(
        step=step,
        command=command,
        result=result,
        open=open_handler,
        timeout_seconds=timeout_seconds,
        prefetch=prefetch,
        deduplicate=False,
        emit_events=False,
        is_query=True,
        schema=schema,
        description=description,
    )


@dataclass(frozen=True)
class TranslatedCommand:
    """A command made from a foreign message. `message_id` is derived from that message, so that a duplicate of it is processed once."""

    step: str
    body: dict[str, Any]
    message_id: str
    job_id: str
    headers: dict[str, Any] = field(default_factory=dict)


class InvalidMessage(PermanentError):
    """The foreign message cannot be translated. `notification`: a command that informs its sender, when the sender is known."""

    def __init__(self, code: str, message: str, *, notification: TranslatedCommand | None = None) -> None:
        super().__init__(code, message)
        self.notification = notification


class IgnoredMessage(Exception):
    """The foreign message is not for this adapter. It is acknowledged and logged with this reason; nobody is informed."""


@dataclass(frozen=True)
class Adapter:
    """Reads a foreign queue. `translate` is pure: the message body in, a command out. It raises InvalidMessage and IgnoredMessage."""

    name: str
    queue: str
    translate: Callable[[bytes], TranslatedCommand]
    prefetch: int = 16
