"""Wait for a part that is away (broker, database) instead of failing the work: the delivery stays unacked, and nothing is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg
import structlog

from bus.errors import PublishError

T = TypeVar("T")
UNAVAILABLE: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    PublishError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # an answer cut in half by the server's end
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
)
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 5.0

log = structlog.get_logger()


async def retry_while_unavailable(call: Callable[[], Awaitable[T]], dependency: str) -> T:
    """Call until it works. Only the absence of a part is waited for; every other error is raised at once."""
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            return await call()
        except UNAVAILABLE as error:
            log.warning("part.away", part=dependency, error=repr(error), wait_seconds=wait)
        await asyncio.sleep(wait)
        wait = min(wait * 2, LONGEST_WAIT_SECONDS)
