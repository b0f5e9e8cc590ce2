"""Turns: one call at a time for each generation, and a memory of what was told. In Postgres for all processes, else in this one alone."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from asyncpg import Pool

from actors.backend.order import Told
from bus.sql import load_queries

SQL = load_queries(str(Path(__file__).parent), "webhook.sql")
REMEMBERED = 20_000


@dataclass(frozen=True)
class Turn:
    """What was told when the turn came, and how to keep what is told now."""

    told: Told
    keep: Callable[[Told], Awaitable[None]]


class Turns(Protocol):
    def turn(self, target: str, generation_id: int) -> AbstractAsyncContextManager[Turn]:
        """Waits until no other call for the generation is under way."""
        ...


class MemoryTurns:
    """The latest generations of this process. What another process told, or this one before a restart, is not known."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, int], Told] = OrderedDict()
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, target: str, generation_id: int) -> AsyncIterator[Turn]:
        key = target, generation_id
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:

            async def keep(told: Told) -> None:
                self._told[key] = told
                self._told.move_to_end(key)
                while len(self._told) > REMEMBERED:
                    self._told.popitem(last=False)

            yield Turn(self._told.get(key, Told()), keep)


class PostgresTurns:
    """One row a generation; an advisory lock makes the processes take turns. Needs a connection of its own for the length of a call."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, target: str, generation_id: int) -> AsyncIterator[Turn]:
        # First among ourselves: whoever waits for the database's lock would hold a connection while it waits.
        ours = self._locks.setdefault((target, generation_id), asyncio.Lock())
        async with ours, self._pool.acquire() as connection:
            await connection.execute(SQL["lock"], f"atelier webhook {target} {generation_id}")
            row = await connection.fetchrow(SQL["told"], target, generation_id)

            async def keep(told: Told) -> None:
                await connection.execute(SQL["tell"], target, generation_id, told.percent, told.complete, told.complete_id, told.failed)

            yield Turn(Told(*row) if row else Told(), keep)
