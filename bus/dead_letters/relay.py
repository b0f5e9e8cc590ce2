"""The outbox relay of replays: reads staged letters from Postgres, publishes them with confirms, marks them as sent.

Any number of relays may run at once:
1. The rows stay locked from the read to the mark, so that two relays never publish the same letter.
2. A relay that crashes between confirm and mark leaves the letter staged. It is published again under the same message id, and the
   inbox of its step answers without doing the work twice.
3. The rate limit of a replay is stored in its row, so that it holds across relays and restarts.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeGuard

import asyncpg
import structlog
from aiormq.exceptions import (
    ChannelInvalidStateError,
    ChannelPreconditionFailed,
    ConnectionFrameError,
    ConnectionInternalError,
    ConnectionSyntaxError,
)

from bus.amqp.publisher import Publisher
from bus.dead_letters.replay_message import build_replay_message
from bus.dead_letters.repository import SQL
from bus.errors import PermanentError, PublishError, UnroutableMessage
from bus.masking import mask_error
from bus.retry import UNAVAILABLE

MAX_BATCH_SIZE = 200
POLL_INTERVAL_SECONDS = 0.5
BATCHES_PER_SECOND = 5
FAILURE_PAUSE_SECONDS = 2.0
"""After a publish that was not confirmed."""
ONE_BY_ONE_SECONDS = 30.0
"""For a batch that the broker has refused. The connection is open again 5 s after each refusal; what is left stays staged."""
REFUSALS = (ChannelPreconditionFailed, ConnectionFrameError, ConnectionInternalError, ConnectionSyntaxError)
"""With these the broker closes the channel, or the connection, because of one message: all that are under way fail."""

log = structlog.get_logger()


class ReplayRelay:
    """Publishes staged replays from one pool through one publisher."""

    def __init__(self, pool: asyncpg.Pool, publisher: Publisher) -> None:
        self._pool, self._publisher = pool, publisher

    async def run(self) -> None:
        """Publish staged letters until cancelled. While the broker or the database is unavailable it tries again."""
        while True:
            try:
                if await self.send_batch() is None:
                    await asyncio.sleep(POLL_INTERVAL_SECONDS)
            except UNAVAILABLE as error:
                log.warning("replay.waiting", error=repr(error))
                await asyncio.sleep(FAILURE_PAUSE_SECONDS)
            except Exception as error:
                log.error("replay.failed", error=repr(error))
                await asyncio.sleep(FAILURE_PAUSE_SECONDS)

    async def complete_replay(self, replay_id: int) -> int:
        """Publish the whole of one replay, possibly beside other relays; returns how many of its letters are sent. Raises PublishError."""
        while not (progress := await self._pool.fetchrow(SQL["progress"], replay_id))["done"]:
            if await self.send_batch(replay_id) is None:
                await asyncio.sleep(POLL_INTERVAL_SECONDS / 5)
        return int(progress["sent"])

    async def send_batch(self, replay_id: int | None = None) -> int | None:
        """Publish one batch of a replay that is due; returns how many were confirmed, None when no replay is due. Raises PublishError."""
        async with self._pool.acquire() as connection:
            async with connection.transaction():
                replay = await connection.fetchrow(SQL["next_replay"], replay_id)
                if replay is None:
                    return None
                sent, error = await self._publish_batch(connection, replay)
            if error:
                raise error
            return sent

    async def _publish_batch(self, connection: asyncpg.Connection, replay: asyncpg.Record) -> tuple[int, PublishError | None]:
        rows = await connection.fetch(SQL["next_letters"], replay["id"], batch_size(replay["per_second"]))
        if not rows:
            await connection.execute(SQL["mark_replay_done"], replay["id"])
            log.info("replay.done", replay=replay["id"])
            return 0, None
        turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        results = await asyncio.gather(*(self._publish_in_turn(row, turns[row["sent_as"]]) for row in rows))
        if any(_is_refusal(error) for error in results):
            results = await self._publish_one_by_one(rows, results)
        return await self._record_results(connection, replay, list(zip(rows, results, strict=True)))

    async def _publish_in_turn(self, row: asyncpg.Record, turn: asyncio.Lock) -> Exception | None:
        """Equal ids one after another: the client library recognises a returned message by its id alone."""
        async with turn:
            return await self._publish(row)

    async def _publish(self, row: asyncpg.Record) -> Exception | None:
        """The error, or None for a message that was confirmed."""
        try:
            await self._publisher.publish(build_replay_message(row))
        except Exception as error:
            return error
        return None

    async def _publish_one_by_one(self, rows: Sequence[asyncpg.Record], results: Sequence[Exception | None]) -> list[Exception | None]:
        """What was not confirmed again, to find what the broker refuses: that one is returned, and does not hold up the others."""
        errors, ends = list(results), time.monotonic() + ONE_BY_ONE_SECONDS
        for index, row in enumerate(rows):
            if errors[index] is None or _is_permanent(errors[index]):
                continue
            error = await self._publish(row)
            while error and isinstance(error.__cause__, ChannelInvalidStateError) and time.monotonic() < ends:
                await asyncio.sleep(POLL_INTERVAL_SECONDS / 5)  # until it is open again
                error = await self._publish(row)
            errors[index] = PermanentError("broker-refused", f"the broker refuses it: {mask_error(error)}") if _is_refusal(error) else error
            if time.monotonic() >= ends:
                break
        return errors

    async def _record_results(
        self, connection: asyncpg.Connection, replay: asyncpg.Record, results: list[tuple[asyncpg.Record, Exception | None]]
    ) -> tuple[int, PublishError | None]:
        """Mark confirmed letters as sent and return those that can never be sent; an unconfirmed one stays staged."""
        sent = [row["id"] for row, error in results if error is None]
        await connection.execute(SQL["mark_sent"], sent)
        unconfirmed = next((error for _, error in results if isinstance(error, PublishError) and not _is_permanent(error)), None)
        for row, error in results:
            if _is_permanent(error):
                await connection.execute(SQL["return_unsent"], row["id"], mask_error(error))
        wait = len(results) / replay["per_second"] if replay["per_second"] else 0.0
        await connection.execute(SQL["schedule_next_batch"], replay["id"], max(wait, FAILURE_PAUSE_SECONDS) if unconfirmed else wait)
        log.info("replay.sent", replay=replay["id"], letters=len(sent), not_sent=len(results) - len(sent))
        return len(sent), unconfirmed


def _is_permanent(error: Exception | None) -> TypeGuard[Exception]:
    """Whether publishing can never succeed: no queue, a message that cannot be encoded, or a refusal. A missing confirm is temporary."""
    return isinstance(error, UnroutableMessage) or (isinstance(error, Exception) and not isinstance(error, PublishError))


def _is_refusal(error: Exception | None) -> TypeGuard[Exception]:
    """Whether the broker refused a message. It may have been another one of the same channel."""
    return isinstance(error, PublishError) and isinstance(error.__cause__, REFUSALS)


def batch_size(per_second: float | None) -> int:
    """How many letters are published at once at this rate limit."""
    return MAX_BATCH_SIZE if per_second is None else max(1, min(MAX_BATCH_SIZE, int(per_second / BATCHES_PER_SECOND)))
