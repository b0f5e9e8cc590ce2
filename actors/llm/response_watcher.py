"""Waits for new events of responses: woken by the runs of this process, and by one query for all that wait, for those of others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from asyncpg import Pool

from actors.llm.response_repository import SQL

POLL_SECONDS, FAILED_POLL_SECONDS = 0.1, 0.5

log = structlog.get_logger()


class ResponseWatcher:
    """`wait` returns when the response may have changed. However many wait, one query per POLL_SECONDS is made."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiters: dict[str, list[tuple[int, asyncio.Event]]] = {}
        self._has_waiters = asyncio.Event()

    async def wait(self, response_id: str, sequence: int, seconds: float) -> None:
        """Until the response has more than `sequence` events, has ended or is gone; at most `seconds`."""
        waiter = (sequence, asyncio.Event())
        self._waiters.setdefault(response_id, []).append(waiter)
        self._has_waiters.set()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(waiter[1].wait(), seconds)
        finally:
            self._waiters[response_id].remove(waiter)
            if not self._waiters[response_id]:
                del self._waiters[response_id]

    def wake(self, response_id: str, next_sequence: int | None = None) -> None:
        """After a write of this process: the response has so many events; None: it has ended or is gone."""
        for sequence, event in self._waiters.get(response_id, ()):
            if next_sequence is None or next_sequence > sequence:
                event.set()

    async def poll(self) -> None:
        """Never returns, whatever the query raises: without it, waits would only end by their time."""
        while True:
            await self._has_waiters.wait()
            if not self._waiters:
                self._has_waiters.clear()
                continue
            pause = POLL_SECONDS
            try:
                await self._check()
            except Exception as error:
                pause = FAILED_POLL_SECONDS
                log.warning("responses.poll_failed", error=repr(error), next_in_seconds=pause)
            await asyncio.sleep(pause)

    async def _check(self) -> None:
        rows = await self._pool.fetch(SQL["sequences"], list(self._waiters))
        states = {row["response_id"]: row for row in rows}
        for response_id, waiters in self._waiters.items():
            state = states.get(response_id)
            for sequence, event in waiters:
                if state is None or state["ended"] or state["next_sequence"] > sequence:
                    event.set()


@asynccontextmanager
async def open_watcher(pool: Pool) -> AsyncIterator[ResponseWatcher]:
    watcher = ResponseWatcher(pool)
    task = asyncio.create_task(watcher.poll())
    try:
        yield watcher
    finally:
        task.cancel()
        await asyncio.wait([task])
