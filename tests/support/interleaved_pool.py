"""A pool that lets another process write after its first statement: what is read in two statements shows whether they fit."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg


class InterleavedPool:
    """The pool or, inside `acquire`, one of its connections. `write` runs after the first query, before its rows are returned."""

    def __init__(self, target: Any, write: Callable[[], Awaitable[Any]]) -> None:
        self._target, self._writes = target, [write]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator["InterleavedPool"]:
        pool: asyncpg.Pool = self._target
        async with pool.acquire() as connection:
            own = InterleavedPool(connection, self._write)
            yield own

    async def fetch(self, *statement: Any) -> Any:
        return await self._then_write(await self._target.fetch(*statement))

    async def fetchrow(self, *statement: Any) -> Any:
        return await self._then_write(await self._target.fetchrow(*statement))

    async def fetchval(self, *statement: Any) -> Any:
        return await self._then_write(await self._target.fetchval(*statement))

    async def _then_write(self, rows: Any) -> Any:
        await self._write()
        return rows

    async def _write(self) -> None:
        if self._writes:
            await self._writes.pop()()
