"""Deletes what is older than its retention, at intervals, as long as a process runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

PURGE_INTERVAL_SECONDS = 3600.0

log = structlog.get_logger()


@asynccontextmanager
async def purge_periodically(
    table: str, purge: Callable[[], Awaitable[int]], interval_seconds: float = PURGE_INTERVAL_SECONDS
) -> AsyncIterator[None]:
    """Call `purge` after each interval, inside the block. `purge` returns how many rows it deleted.

    A purge that fails is logged and tried again after the next interval: the database may be away for longer than one purge.
    """
    task = asyncio.create_task(_purge_forever(table, purge, interval_seconds))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _purge_forever(table: str, purge: Callable[[], Awaitable[int]], interval_seconds: float) -> None:
    while True:
        await asyncio.sleep(interval_seconds)
        try:
            log.info("retention.purged", table=table, rows=await purge())
        except Exception as error:
            log.warning("retention.purge_failed", table=table, error=repr(error), next_in_seconds=interval_seconds)
