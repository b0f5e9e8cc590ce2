"""Ingest: moves dead letters from their queues into Postgres. A letter is acked after its transaction is committed, never before."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import asyncpg
import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.amqp import acknowledgements
from bus.amqp.publisher import Publisher
from bus.dead_letters.record import DeadLetterRecord
from bus.dead_letters.relay import ReplayRelay
from bus.dead_letters.repository import SCHEMA, DeadLetterRepository
from bus.delivery import OnMessage
from bus.errors import PermanentError
from bus.masking import mask_error, mask_text
from bus.persistence.group_commit import GroupCommit

WRITE_RETRY_SECONDS = 5.0
"""Between two attempts to write a letter that the database refuses."""
UNSTORABLE = (asyncpg.DataError, asyncpg.ProgramLimitExceededError, ValueError, OverflowError, TypeError)
"""Errors of a record itself: writing it again cannot succeed."""

log = structlog.get_logger()


@dataclass(frozen=True)
class DeadLetterIngest:
    """The dead-letter queues that a worker consumes. `foreign_queues` belong to other systems: they must exist, and are not declared."""

    name: str
    queues: tuple[str, ...]
    foreign_queues: tuple[str, ...] = ()
    prefetch: int = 100

    @property
    def schema(self) -> str:
        return SCHEMA


@dataclass(frozen=True)
class DeadLetterConsumer:
    """Consumes dead-letter queues. Letters that wait at the same time are inserted in one transaction, whatever their queues."""

    inserts: GroupCommit[DeadLetterRecord, None]

    async def on_message(self, message: AbstractIncomingMessage, *, queue: str) -> None:
        """Store one dead letter, then ack it. One that the database can never hold is stored as its raw body."""
        now = datetime.now(UTC)
        try:
            record = DeadLetterRecord.from_message(message, queue, now)
            await self._write(record)
        except Exception as error:
            log.error("dead_letter.stored_raw", queue=queue, error=mask_error(error)[:500])
            record = DeadLetterRecord.raw(message.body, queue, now, mask_text(repr(error)))
            await self._write(record)
        acknowledgements.ack(message)
        log.info("dead_letter.stored", step=record.step, code=record.code, job_id=record.job_id, message_id=record.message_id, id=record.id)

    async def _write(self, record: DeadLetterRecord) -> None:
        """Repeat the write while the database refuses it, from then on alone. Raises an error of UNSTORABLE at once."""
        write = partial(self.inserts.submit, record, record.size)
        while True:
            try:
                return await write()
            except UNSTORABLE:
                raise
            except Exception as error:
                fields = {"queue": record.dead_queue, "message_id": record.message_id, "error": mask_error(error)}
                log.error("dead_letter.store_failed", **fields, wait_seconds=WRITE_RETRY_SECONDS)
                await asyncio.sleep(WRITE_RETRY_SECONDS)
                write = partial(self.inserts.send_alone, record)


@asynccontextmanager
async def open_ingest(ingest: DeadLetterIngest, pool: asyncpg.Pool | None, publisher: Publisher) -> AsyncIterator[dict[str, OnMessage]]:
    """Yield the callback of each queue. A relay task publishes staged replays as long as the context is open.

    Raises PermanentError("database-missing").
    """
    if pool is None:
        raise PermanentError("database-missing", "dead letters are kept in Postgres: set DATABASE_URL")
    relay_task = asyncio.create_task(ReplayRelay(pool, publisher).run())
    try:
        consumer = DeadLetterConsumer(GroupCommit(DeadLetterRepository(pool).insert))
        yield {queue: partial(consumer.on_message, queue=queue) for queue in (*ingest.queues, *ingest.foreign_queues)}
    finally:
        relay_task.cancel()
        await asyncio.wait({relay_task})
