"""Waits for a dependency (broker, database) that is unavailable instead of failing: the delivery stays unacknowledged meanwhile."""

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
    asyncpg.InternalClientError,  # a response that the server cut off
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,  # a password that is being changed; at start it is an error
    asyncpg.InvalidCatalogNameError,  # a database that is being restored; at start it is an error
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InvalidSQLStatementNameError,  # a pooler that has begun to share sessions since the start
    asyncpg.DuplicatePreparedStatementError,
)
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 5.0

log = structlog.get_logger()


async def retry_while_unavailable(call: Callable[[], Awaitable[T]], dependency: str) -> T:
    """Call until it succeeds, with a doubling wait. Errors that do not mean an unavailable dependency are raised at once."""
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            return await call()
        except UNAVAILABLE as error:
            log.warning("dependency.unavailable", dependency=dependency, error=repr(error), wait_seconds=wait)
        await asyncio.sleep(wait)
        wait = min(wait * 2, LONGEST_WAIT_SECONDS)
