"""One call at a time for each generation, and the stored state of its calls: in Postgres for all processes, or in this process only."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

from asyncpg import Pool

from actors.webhooks.delivery_state import DeliveryState
from bus.persistence.session_locks import SessionLocks
from bus.sql import load_queries

SQL = load_queries(__file__, "delivery_lock.sql")
MAX_CACHED_STATES = 20_000


@dataclass(frozen=True)
class LockedDelivery:
    """The state of a generation's calls when the lock was acquired, and how to save a new one."""

    state: DeliveryState
    save: Callable[[DeliveryState], Awaitable[None]]


class DeliveryLock(Protocol):
    def acquire(self, target: str, generation_id: int) -> AbstractAsyncContextManager[LockedDelivery]:
        """Waits until no other call for the generation is running."""
        ...


class MemoryDeliveryLock:
    """The latest generations of this process. Calls of other processes, and those before a restart, are not known."""

    def __init__(self) -> None:
        self._states: OrderedDict[tuple[str, int], DeliveryState] = OrderedDict()
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def acquire(self, target: str, generation_id: int) -> AsyncIterator[LockedDelivery]:
        key = target, generation_id
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:

            async def save(state: DeliveryState) -> None:
                self._states[key] = state
                self._states.move_to_end(key)
                while len(self._states) > MAX_CACHED_STATES:
                    self._states.popitem(last=False)

            yield LockedDelivery(self._states.get(key, DeliveryState()), save)


class PostgresDeliveryLock:
    """One row for each generation, and an advisory lock between processes. A call holds no connection of the pool."""

    def __init__(self, pool: Pool, locks: SessionLocks) -> None:
        self._pool, self._locks = pool, locks

    @asynccontextmanager
    async def acquire(self, target: str, generation_id: int) -> AsyncIterator[LockedDelivery]:
        async with self._locks.hold(SQL["lock"], SQL["unlock"], f"atelier webhook {target} {generation_id}") as require_held:
            row = await self._pool.fetchrow(SQL["load_state"], target, generation_id)

            async def save(state: DeliveryState) -> None:
                """Raises LockLost: another process may have changed the state meanwhile."""
                require_held()
                values = (state.percent, state.complete, state.complete_id, state.failed, state.owner)
                await self._pool.execute(SQL["save_state"], target, generation_id, *values)

            yield LockedDelivery(DeliveryState(*row) if row else DeliveryState(), save)
