"""Turns: one call at a time for each generation, and a memory of what was told. In Postgres for all processes, else in this one alone."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

from asyncpg import Pool

from actors.webhooks.delivery_state import DeliveryState
from bus.sql import load_queries

SQL = load_queries(__file__, "delivery_lock.sql")
MAX_CACHED_STATES = 20_000


@dataclass(frozen=True)
class LockedDelivery:
    """What was told when the turn came, and how to keep what is told now."""

    state: DeliveryState
    save: Callable[[DeliveryState], Awaitable[None]]


class DeliveryLock(Protocol):
    def acquire(self, target: str, generation_id: int) -> AbstractAsyncContextManager[LockedDelivery]:
        """Waits until no other call for the generation is under way."""
        ...


class MemoryDeliveryLock:
    """The latest generations of this process. What another process told, or this one before a restart, is not known."""

    def __init__(self) -> None:
        self._states: OrderedDict[tuple[str, int], DeliveryState] = OrderedDict()
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def acquire(self, target: str, generation_id: int) -> AsyncIterator[LockedDelivery]:
        key = target, generation_id
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:

            async def keep(told: DeliveryState) -> None:
                self._states[key] = told
                self._states.move_to_end(key)
                while len(self._states) > MAX_CACHED_STATES:
                    self._states.popitem(last=False)

            yield LockedDelivery(self._states.get(key, DeliveryState()), keep)


class PostgresDeliveryLock:
    """One row a generation; an advisory lock makes the processes take turns. Needs a connection of its own for the length of a call."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def acquire(self, target: str, generation_id: int) -> AsyncIterator[LockedDelivery]:
        # First among ourselves: whoever waits for the database's lock would hold a connection while it waits.
        ours = self._locks.setdefault((target, generation_id), asyncio.Lock())
        async with ours, self._pool.acquire() as connection:
            await connection.execute(SQL["lock"], f"atelier webhook {target} {generation_id}")
            row = await connection.fetchrow(SQL["told"], target, generation_id)

            async def keep(told: DeliveryState) -> None:
                await connection.execute(SQL["tell"], target, generation_id, told.percent, told.complete, told.complete_id, told.failed)

            yield LockedDelivery(DeliveryState(*row) if row else DeliveryState(), keep)
