"""What an actor is: one step's command, result and limits, and how its handler is opened. No base class, no registry."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from asyncpg import Connection, Pool

from bus.claims import ClaimStore
from contracts import channels
from contracts.carried import Carried
from contracts.event import Progress
from contracts.wire import Result

Report = Callable[[Progress], Awaitable[None]]
Say = Callable[[Carried], Awaitable[None]]
Write = Callable[[Connection], Awaitable[None]]


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
    report: Report
    say: Say | None = None


@dataclass(frozen=True)
class Transactional:
    """A result together with a write, which the bus carries out in the very transaction that remembers the outcome.

    `settled` is called when that transaction is over, however it ended.
    """

    result: Result
    write: Write
    settled: Callable[[], Awaitable[None]] | None = None


class Handler(Protocol):
    """Takes a command, returns a result. It never acks, publishes, retries or names the next stop."""

    async def __call__(self, command: Any, context: Context, /) -> Result | Transactional: ...


class Engine(Protocol):
    """What an actor shows of the engine that works for it."""

    async def away(self) -> str | None:
        """Why it would not answer now; None when it would."""
        ...

    def snapshot(self) -> Mapping[str, Any]:
        """What it counts, by the names of metrics; see `bus/metrics.py`."""
        ...


@dataclass(frozen=True)
class Tools:
    """What the bus lends to an actor: the claim store, and the database pool when there is one.

    `unready` takes a word from the actor: why it can do no work for now, and None when it can again. `show` takes its engine.
    """

    claims: ClaimStore
    database: Pool | None = None
    unready: Callable[[str | None], None] = lambda _: None
    show: Callable[[Engine], None] = lambda _: None


Open = Callable[[Tools], AbstractAsyncContextManager[Handler]]


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
    command: type[Carried]
    result: type[Result]
    open: Open
    timeout_seconds: float
    prefetch: int
    remembers: bool = True
    announces: bool = True
    question: bool = False
    expires: bool = True
    schema: str = ""
    exchange: str = channels.COMMANDS
    keys: tuple[str, ...] = field(default=())
    description: str = ""

    @property
    def queue(self) -> str:
        return channels.work_queue(self.step)

    @property
    def binding_keys(self) -> tuple[str, ...]:
        return self.keys or (self.step,)
