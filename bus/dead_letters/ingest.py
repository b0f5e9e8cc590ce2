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

from bus.amqp.publisher import Publisher
from bus.dead_letters.record import DeadLetterRecord
from bus.dead_letters.relay import ReplayRelay
from bus.dead_letters.repository import SCHEMA, DeadLetterRepository
from bus.errors import PermanentError
from bus.retry import retry_while_unavailable

MessageCallback = Callable[[AbstractIncomingMessage], Coroutine[Any, Any, None]]

MAX_BATCH_SIZE = 100
WRITE_RETRY_SECONDS = 5.0
"""Between two tries to write a letter that the database refuses."""

log = structlog.get_logger()


@dataclass(frozen=True)
class DeadLetterIngest:
    """Which queues are read. `foreign` queues belong to someone else: they are not declared, they must be there."""

    name: str
    queues: tuple[str, ...]
    foreign_queues: tuple[str, ...] = ()
    prefetch: int = 100

    @property
    def schema(self) -> str:
        return SCHEMA


@dataclass(eq=False)
class PendingWrite:
    record: DeadLetterRecord
    written: bool = False


@dataclass
class BatchWriter:
    """Letters that wait for the next write. Whoever comes first writes for all who wait, in one transaction."""

    repository: DeadLetterRepository
    pending: list[PendingWrite] = field(default_factory=list)
    write_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def write(self, record: DeadLetterRecord) -> None:
        """Return when the letter is written. Raises when the database refuses this very letter; waits while it is away."""
        ticket = PendingWrite(record)
        self.pending.append(ticket)
        try:
            async with self.write_lock:
                while not ticket.written:
                    await self._write_batch(ticket)
        finally:
            if ticket in self.pending:
                self.pending.remove(ticket)

    async def _write_batch(self, own_write: PendingWrite) -> None:
        """One handful of all who wait; if that is refused, the own letter alone, so that one bad letter holds up no other."""
        handful = self.pending[:MAX_BATCH_SIZE]
        try:
            await retry_while_unavailable(lambda: self.repository.insert([ticket.record for ticket in handful]), "database")
        except (asyncpg.PostgresError, ValueError, OverflowError) as error:
            log.warning("dead_letters.one_by_one", error=repr(error))
            handful = [own_write]
            await retry_while_unavailable(lambda: self.repository.insert([own_write.record]), "database")
        for ticket in handful:
            ticket.written = True
        self.pending = [ticket for ticket in self.pending if not ticket.written]


@dataclass(frozen=True)
class DeadLetterConsumer:
    writer: BatchWriter

    async def receive(self, raw: AbstractIncomingMessage, *, queue: str) -> None:
        """Write one letter down, then ack. What the database refuses stays unacked in the broker, and is tried again."""
        letter = DeadLetterRecord.from_message(raw, queue, datetime.now(UTC))
        while True:
            try:
                await self.writer.write(letter)
                break
            except Exception as error:
                log.error(
                    "dead_letter.not_kept", queue=queue, message_id=letter.message_id, error=repr(error), wait_seconds=WRITE_RETRY_SECONDS
                )
                await asyncio.sleep(WRITE_RETRY_SECONDS)
        try:
            await raw.ack()
        except Exception as error:
            log.info("delivery.unsettled", message_id=letter.message_id, error=repr(error))
        log.info("dead_letter.kept", step=letter.step, code=letter.code, job_id=letter.job_id, message_id=letter.message_id, id=letter.id)


@asynccontextmanager
async def open_ingest(
    ingest: DeadLetterIngest, pool: asyncpg.Pool | None, publisher: Publisher
) -> AsyncIterator[dict[str, MessageCallback]]:
    """Who receives from each queue; and beside it a sender beside it for what operators ask to be sent again."""
    if pool is None:
        raise PermanentError("database-missing", "dead letters are kept in Postgres: set DATABASE_URL")
    sending = asyncio.create_task(ReplayRelay(pool, publisher).run())
    try:
        counter = DeadLetterConsumer(BatchWriter(DeadLetterRepository(pool)))
        yield {queue: partial(counter.receive, queue=queue) for queue in (*ingest.queues, *ingest.foreign_queues)}
    finally:
        sending.cancel()
        await asyncio.wait({sending})
