"""A connection of the pool that is kept from one statement to the next: its return costs a task, a timer and turns of the event loop."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncpg

KEPT_SECONDS = 0.2


class KeptConnection:
    """For statements that leave no session state. Those that run at the same time have a connection each, of which one is kept.

    It is returned after KEPT_SECONDS without a statement, and at once when the pool has no other: nobody waits for it for long.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._connection: Any = None
        self._used_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._returning: asyncio.Task[None] | None = None

    async def fetch(self, *statement: Any) -> Sequence[asyncpg.Record]:
        connection, self._connection = self._connection, None
        if connection is not None and is_gone(connection):
            with suppress(asyncpg.InterfaceError):  # it is back in its pool
                connection.terminate()
                await self._pool.release(connection)
            connection = None
        if connection is None:
            connection = await self._pool.acquire()
            connection.mark_clean()
        try:
            rows: Sequence[asyncpg.Record] = await connection.fetch(*statement)
        except BaseException as error:
            if isinstance(error, TimeoutError):
                connection.terminate()  # otherwise its return waits until a server that does not respond confirms the cancellation
            await self._pool.release(connection)
            raise
        if self._connection is None and has_spare(self._pool):
            self._keep(connection)
        else:
            await self._pool.release(connection)
        return rows

    def _keep(self, connection: Any) -> None:
        loop = asyncio.get_running_loop()
        self._connection, self._used_at = connection, loop.time()
        self._timer = self._timer or loop.call_later(KEPT_SECONDS, self._return_unused)

    def _return_unused(self) -> None:
        """One timer for many statements: it is set again for what is left of the time since the last."""
        self._timer = None
        if self._connection is None:
            return
        loop = asyncio.get_running_loop()
        if (left := self._used_at + KEPT_SECONDS - loop.time()) > 0:
            self._timer = loop.call_later(left, self._return_unused)
        else:
            self._returning = loop.create_task(self.close())

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(asyncpg.InterfaceError):  # the pool is closed
                await self._pool.release(connection)


def is_gone(connection: Any) -> bool:
    """Closed, or expired with its pool. A connection that the server has closed is back in its pool, and refuses every call."""
    try:
        return bool(connection.is_closed() or connection.is_expired())
    except asyncpg.InterfaceError:
        return True


def has_spare(pool: asyncpg.Pool) -> bool:
    return bool(pool.get_idle_size() or pool.get_size() < pool.get_max_size())
