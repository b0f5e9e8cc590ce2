"""Advisory locks between processes, all on one connection of this process beside the pool: a lock belongs to a session of the server.

A transaction of a pooled connection is unaffected by them, and a pooler in transaction mode, which has no sessions, can serve the pool.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakValueDictionary

import asyncpg

from bus.persistence import pool as persistence_pool
from bus.persistence.database_url import without_connect_timeout
from bus.persistence.server_check import CONNECT_TIMEOUT_SECONDS, DatabaseServer, find_session_database
from bus.retry import retry_while_unavailable
from bus.settings import BusSettings

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.02, 0.5
CLOSE_TIMEOUT_SECONDS = 3.0
KEEP_ALIVE = "set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3"
"""The server frees the locks of a machine that vanished after a minute; by default it would hold them for more than two hours."""
CONNECTION_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class LockLost(ConnectionError):
    """The connection that held a lock is gone: another process may hold it now."""


class SessionLocks:
    """`connect` opens the connection, at first use and again after a loss. `lost` is set whenever it is lost."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self._connect = connect
        self._connection: asyncpg.Connection | None = None
        self._connection_lock = asyncio.Lock()
        self._local_locks: WeakValueDictionary[tuple[Any, ...], asyncio.Lock] = WeakValueDictionary()
        self.lost = asyncio.Event()

    @asynccontextmanager
    async def hold(self, lock: str, unlock: str, *key: Any) -> AsyncIterator[Callable[[], None]]:
        """Hold a lock inside the block; callers of this process get it in the order of their calls. Yields a check that it is still held.

        `lock` returns whether it has taken the lock of `key`, `unlock` releases it. While the server is away it waits, with every caller
        of the same key. The check raises LockLost.
        """
        local_lock = self._local_locks.setdefault((lock, *key), asyncio.Lock())
        async with local_lock:
            poll = FIRST_POLL_SECONDS
            try:
                while not await retry_while_unavailable(lambda: self.fetchval(lock, *key), "database"):
                    await asyncio.sleep(poll)
                    poll = min(2 * poll, LONGEST_POLL_SECONDS)
                connection = self._connection

                def require_held() -> None:
                    if connection is None or connection.is_closed():
                        raise LockLost("the connection that held the lock is lost")

                yield require_held
            finally:
                # An interrupted attempt may have taken it. The server frees the locks of a lost connection.
                await asyncio.shield(self._release(unlock, *key))

    async def _release(self, unlock: str, *key: Any) -> None:
        with suppress(*CONNECTION_ERRORS):
            if self._connection is not None and not self._connection.is_closed():
                await self.fetchval(unlock, *key)

    async def fetchval(self, statement: str, *arguments: Any) -> Any:
        """Run one statement on the connection. After a time-out the connection, which may be half open, is replaced."""
        async with self._connection_lock:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
                self._connection.add_termination_listener(lambda _: self.lost.set())
            try:
                return await self._connection.fetchval(statement, *arguments)
            except TimeoutError:
                self.disconnect()
                raise

    def disconnect(self) -> None:
        """Give up the connection, and with it every lock; the next use opens another."""
        if self._connection is not None:
            self._connection.terminate()

    async def close(self) -> None:
        if self._connection is not None:
            with suppress(*CONNECTION_ERRORS):
                await self._connection.close(timeout=CLOSE_TIMEOUT_SECONDS)


@asynccontextmanager
async def open_session_locks(settings: BusSettings, database: DatabaseServer | None) -> AsyncIterator[SessionLocks | None]:
    """The locks of this process; None without a database. Raises PermanentError("database-pooler") where sessions are shared."""
    if database is None:
        yield None
        return
    server = await find_session_database(settings, database)
    locks = SessionLocks(lambda: connect_session(server.url))
    try:
        yield locks
    finally:
        await locks.close()


async def connect_session(url: str, statement_seconds: float | None = None) -> asyncpg.Connection:
    """A connection whose session is its own. `statement_seconds`: the limit of one statement, by default that of the pool's."""
    dsn, seconds = without_connect_timeout(url, CONNECT_TIMEOUT_SECONDS)
    limit = statement_seconds or persistence_pool.STATEMENT_TIMEOUT_SECONDS
    connection = await asyncpg.connect(dsn, timeout=seconds, command_timeout=limit)
    try:
        await connection.execute(KEEP_ALIVE)
    except BaseException:
        connection.terminate()
        raise
    return connection
