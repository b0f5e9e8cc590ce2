"""The sender: takes staged letters from Postgres, posts them with a confirm, marks them as sent. Any number may run at once.

Rule 1: the rows stay locked from the reading to the mark, so that two senders never hold the same letter.
Rule 2: a sender that dies between confirm and mark leaves the letter staged; it is sent once more under the same id, which the inbox
of its step answers without doing the work twice.
Rule 3: the pace of a replay stands on its row, so that it holds across senders and restarts.
"""

import asyncio

import asyncpg
import structlog

from bus.amqp.publisher import Publisher
from bus.dead_letters.replay import build_replay_message
from bus.dead_letters.repository import SQL
from bus.errors import PublishError, UnroutableMessage
from bus.retry import UNAVAILABLE

MAX_BATCH_SIZE = 200
POLL_INTERVAL_SECONDS = 0.5
BATCHES_PER_SECOND = 5
FAILURE_PAUSE_SECONDS = 2.0
"""After a send that was not confirmed."""

log = structlog.get_logger()


class ReplayRelay:
    def __init__(self, pool: asyncpg.Pool, publisher: Publisher) -> None:
        self._pool, self._publisher = pool, publisher

    async def run(self) -> None:
        """Send what is staged, for ever. Parts that are away are waited for."""
        while True:
            try:
                if await self.send_batch() is None:
                    await asyncio.sleep(POLL_INTERVAL_SECONDS)
            except UNAVAILABLE as error:
                log.warning("replay.waiting", error=repr(error))
                await asyncio.sleep(FAILURE_PAUSE_SECONDS)
            except Exception as error:
                log.error("replay.stumbled", error=repr(error))
                await asyncio.sleep(FAILURE_PAUSE_SECONDS)

    async def complete_replay(self, replay_id: int) -> int:
        """Send one replay to its end, together with whoever else sends for it; returns how many letters of it are sent."""
        while not (progress := await self._pool.fetchrow(SQL["progress"], replay_id))["done"]:
            if await self.send_batch(replay_id) is None:
                await asyncio.sleep(POLL_INTERVAL_SECONDS / 5)
        return int(progress["sent"])

    async def send_batch(self, replay_id: int | None = None) -> int | None:
        """One handful of one replay that is due; how many were sent, or None when nothing is due. Raises PublishError."""
        async with self._pool.acquire() as connection:
            async with connection.transaction():
                replay = await connection.fetchrow(SQL["next_replay"], replay_id)
                if replay is None:
                    return None
                sent, refused = await self._publish_batch(connection, replay)
            if refused:
                raise refused
            return sent

    async def _publish_batch(self, connection: asyncpg.Connection, replay: asyncpg.Record) -> tuple[int, PublishError | None]:
        rows = await connection.fetch(SQL["next_letters"], replay["id"], batch_size(replay["per_second"]))
        if not rows:
            await connection.execute(SQL["done"], replay["id"])
            log.info("replay.done", replay=replay["id"])
            return 0, None
        fates = await asyncio.gather(*(self._publisher.publish(build_replay_message(row)) for row in rows), return_exceptions=True)
        return await self._record_results(connection, replay, list(zip(rows, fates, strict=True)))

    async def _record_results(
        self, connection: asyncpg.Connection, replay: asyncpg.Record, results: list[tuple[asyncpg.Record, BaseException | None]]
    ) -> tuple[int, PublishError | None]:
        """What was confirmed is sent; what was not confirmed in time stays staged; what can never be sent goes back."""
        sent = [row["id"] for row, fate in results if fate is None]
        await connection.execute(SQL["sent"], sent)
        refused = next((fate for _, fate in results if isinstance(fate, PublishError) and not isinstance(fate, UnroutableMessage)), None)
        for row, fate in results:
            if isinstance(fate, Exception) and (isinstance(fate, UnroutableMessage) or not isinstance(fate, PublishError)):
                await connection.execute(SQL["not_sent"], row["id"], str(fate) or repr(fate))
        wait = len(results) / replay["per_second"] if replay["per_second"] else 0.0
        await connection.execute(SQL["pace"], replay["id"], max(wait, FAILURE_PAUSE_SECONDS) if refused else wait)
        log.info("replay.sent", replay=replay["id"], letters=len(sent), not_sent=len(results) - len(sent))
        return len(sent), refused


def batch_size(per_second: float | None) -> int:
    """How many letters go out together at a pace."""
    return MAX_BATCH_SIZE if per_second is None else max(1, min(MAX_BATCH_SIZE, int(per_second / BATCHES_PER_SECOND)))
