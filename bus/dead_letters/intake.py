"""The intake: takes dead letters out of their queues into the cabinet. A letter is acked when it is written, and never before."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import asyncpg
import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.dead_letters.buried import Buried
from bus.dead_letters.cabinet import SCHEMA, Cabinet
from bus.dead_letters.sender import Sender
from bus.errors import PermanentError
from bus.outbox import Outbox
from bus.patience import until_back

Receive = Callable[[AbstractIncomingMessage], Coroutine[Any, Any, None]]

MOST_AT_ONCE = 100
PAUSE_SECONDS = 5.0
"""Between two tries to write a letter that the database refuses."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Intake:
    """Which queues are read. `foreign` queues belong to someone else: they are not declared, they must be there."""

    name: str
    queues: tuple[str, ...]
    foreign: tuple[str, ...] = ()
    prefetch: int = 100

    @property
    def schema(self) -> str:
        return SCHEMA


@dataclass(eq=False)
class Ticket:
    letter: Buried
    kept: bool = False


@dataclass
class Basket:
    """Letters that wait for the next write. Whoever comes first writes for all who wait, in one transaction."""

    cabinet: Cabinet
    waiting: list[Ticket] = field(default_factory=list)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def keep(self, letter: Buried) -> None:
        """Return when the letter is written. Raises when the database refuses this very letter; waits while it is away."""
        ticket = Ticket(letter)
        self.waiting.append(ticket)
        try:
            async with self.writing:
                while not ticket.kept:
                    await self._write(ticket)
        finally:
            if ticket in self.waiting:
                self.waiting.remove(ticket)

    async def _write(self, own: Ticket) -> None:
        """One handful of all who wait; if that is refused, the own letter alone, so that one bad letter holds up no other."""
        handful = self.waiting[:MOST_AT_ONCE]
        try:
            await until_back(lambda: self.cabinet.keep([ticket.letter for ticket in handful]), "database")
        except (asyncpg.PostgresError, ValueError, OverflowError) as error:
            log.warning("dead_letters.one_by_one", error=repr(error))
            handful = [own]
            await until_back(lambda: self.cabinet.keep([own.letter]), "database")
        for ticket in handful:
            ticket.kept = True
        self.waiting = [ticket for ticket in self.waiting if not ticket.kept]


@dataclass(frozen=True)
class IntakeCounter:
    basket: Basket

    async def receive(self, raw: AbstractIncomingMessage, *, queue: str) -> None:
        """Write one letter down, then ack. What the database refuses stays unacked in the broker, and is tried again."""
        letter = Buried.of(raw, queue, datetime.now(UTC))
        while True:
            try:
                await self.basket.keep(letter)
                break
            except Exception as error:
                log.error("dead_letter.not_kept", queue=queue, message_id=letter.message_id, error=repr(error), wait_seconds=PAUSE_SECONDS)
                await asyncio.sleep(PAUSE_SECONDS)
        try:
            await raw.ack()
        except Exception as error:
            log.info("delivery.unsettled", message_id=letter.message_id, error=repr(error))
        log.info("dead_letter.kept", step=letter.step, code=letter.code, job_id=letter.job_id, message_id=letter.message_id, id=letter.id)


@asynccontextmanager
async def open_intake(intake: Intake, pool: asyncpg.Pool | None, outbox: Outbox) -> AsyncIterator[dict[str, Receive]]:
    """Who receives from each queue; and beside it a sender beside it for what operators ask to be sent again."""
    if pool is None:
        raise PermanentError("database-missing", "dead letters are kept in Postgres: set DATABASE_URL")
    sending = asyncio.create_task(Sender(pool, outbox).run())
    try:
        counter = IntakeCounter(Basket(Cabinet(pool)))
        yield {queue: partial(counter.receive, queue=queue) for queue in (*intake.queues, *intake.foreign)}
    finally:
        sending.cancel()
        await asyncio.wait({sending})
