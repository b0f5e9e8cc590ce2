"""The inbox: which messages were done, and with what result, so that a message that comes twice has its effect once.

A message is claimed before the work, so that two deliveries of it never run side by side. A claim belongs to a process; whether
that process lives is told by one advisory lock that it holds for as long as it is connected. The claim of a dead process is free.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import asyncpg
import structlog

from bus.actor import DatabaseWrite
from bus.errors import EngineCrashed, PermanentError
from bus.persistence.pool import stateless_connection
from bus.retry import retry_while_unavailable
from bus.sql import load_queries
from contracts.wire import Result

SQL = load_queries(__file__, "inbox.sql")
SCHEMA = SQL["schema"]
LIVENESS_LOCK_CLASS = 4_273
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.02, 1.0

log = structlog.get_logger()


@dataclass(frozen=True)
class InboxEntry:
    """What the inbox says of a message: its result when it was done, whether its job was cancelled, how many processes died at it."""

    result: dict[str, Any] | None
    cancelled: bool
    crash_count: int = 0


class Inbox(Protocol):
    async def crash_count(self, step: str, message_id: str, redelivery_count: int) -> int:
        """How many processes may have died of this message. `returns`: how often the broker took it back."""
        ...

    async def acquire(self, step: str, message_id: str, job_id: str) -> InboxEntry:
        """Take a message, waiting while another delivery of it is at work."""
        ...

    async def mark_done(self, step: str, message_id: str, result: Result, write: DatabaseWrite | None) -> None:
        """Keep the result, in one transaction with the actor's own write. Raises ClaimLost when the message is no longer ours."""
        ...

    async def release(self, step: str, message_id: str) -> None:
        """Give up a message that was not done."""
        ...

    async def cancel(self, job_id: str) -> None:
        """Note that a job is cancelled, for commands of it that are still to come."""
        ...


class OwnershipLost(EngineCrashed):
    """Another process holds the message by now: whatever was done here does not count."""


class InFlightKeys:
    """What this process has in hand: two deliveries of one message never run side by side in it."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], asyncio.Event] = {}

    async def acquire(self, step: str, message_id: str) -> None:
        """Take a message, waiting while another delivery of it is in hand."""
        while busy := self._events.get((step, message_id)):
            await busy.wait()
        self._events[step, message_id] = asyncio.Event()

    def release(self, step: str, message_id: str) -> None:
        if done := self._events.pop((step, message_id), None):
            done.set()


class NullInbox:
    """Remembers nothing: two deliveries of one message never run side by side in this process; nothing more is promised."""

    def __init__(self, pool: asyncpg.Pool | None = None) -> None:
        self._pool = pool
        self._in_flight = InFlightKeys()
        self._cancelled: set[str] = set()

    async def crash_count(self, step: str, message_id: str, redelivery_count: int) -> int:
        """Nobody remembers who was at work: each return but the first, which a lost connection explains, counts as a death."""
        return max(0, redelivery_count - 1)

    async def acquire(self, step: str, message_id: str, job_id: str) -> InboxEntry:
        await self._in_flight.acquire(step, message_id)
        return InboxEntry(None, job_id in self._cancelled)

    async def mark_done(self, step: str, message_id: str, result: Result, write: DatabaseWrite | None) -> None:
        if write:
            await retry_while_unavailable(lambda: self._write(step, write), "database")
        await self.release(step, message_id)

    async def _write(self, step: str, write: DatabaseWrite) -> None:
        if self._pool is None:
            raise PermanentError("database-missing", f"{step} keeps tables: set DATABASE_URL for its process")
        async with self._pool.acquire() as connection, connection.transaction():
            await write(connection)

    async def release(self, step: str, message_id: str) -> None:
        self._in_flight.release(step, message_id)

    async def cancel(self, job_id: str) -> None:
        self._cancelled.add(job_id)


class PostgresInbox:
    """Outcomes in the table `atelier.inbox`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._in_flight = InFlightKeys()
        self.owner = secrets.randbelow(2**31 - 1) + 1
        self.liveness_lock_held = asyncio.Event()

    async def crash_count(self, step: str, message_id: str, redelivery_count: int) -> int:
        """A message that was taken back but never at work has killed nobody."""
        if not redelivery_count:
            return 0
        return (
            await retry_while_unavailable(
                lambda: self._pool.fetchval(SQL["crash_count"], step, message_id, LIVENESS_LOCK_CLASS), "database"
            )
            or 0
        )

    async def acquire(self, step: str, message_id: str, job_id: str) -> InboxEntry:
        await self._in_flight.acquire(step, message_id)
        try:
            known = await self._acquire(step, message_id, job_id)
        except BaseException:
            self._in_flight.release(step, message_id)
            raise
        if known.result is not None:
            self._in_flight.release(step, message_id)
        return known

    async def _acquire(self, step: str, message_id: str, job_id: str) -> InboxEntry:
        poll = FIRST_POLL_SECONDS
        while True:
            row = await retry_while_unavailable(
                lambda: self._fetchrow(SQL["acquire"], step, message_id, self.owner, LIVENESS_LOCK_CLASS, job_id), "database"
            )
            if row["mine"] or row["result"] is not None:
                return InboxEntry(row["result"], row["cancelled"], row["deaths"])
            await asyncio.sleep(poll)
            poll = min(poll * 2, LONGEST_POLL_SECONDS)

    async def mark_done(self, step: str, message_id: str, result: Result, write: DatabaseWrite | None) -> None:
        await retry_while_unavailable(lambda: self._mark_done(step, message_id, result, write), "database")
        self._in_flight.release(step, message_id)

    async def _mark_done(self, step: str, message_id: str, result: Result, write: DatabaseWrite | None) -> None:
        said = (SQL["mark_done"], step, message_id, self.owner, result.model_dump(mode="json", exclude_none=True))
        if write is None:  # one statement is its own transaction, and saves two round trips
            ours = await self._fetchrow(*said)
        else:
            async with self._pool.acquire() as connection, connection.transaction():
                if ours := await connection.fetchval(*said):
                    await write(connection)
        if not ours:
            raise OwnershipLost(f"message {message_id} of {step} is held by another process by now")

    async def _fetchrow(self, *statement: Any) -> Any:
        async with stateless_connection(self._pool) as line:
            return await line.fetchrow(*statement)

    async def release(self, step: str, message_id: str) -> None:
        try:
            await retry_while_unavailable(lambda: self._fetchrow(SQL["release"], step, message_id, self.owner), "database")
        finally:
            self._in_flight.release(step, message_id)

    async def cancel(self, job_id: str) -> None:
        await retry_while_unavailable(lambda: self._pool.execute(SQL["cancel"], job_id), "database")

    async def purge(self, days: float) -> int:
        """Delete outcomes older than `days`; returns how many."""
        return int(await self._pool.fetchval(SQL["purge"], days))

    async def hold_liveness_lock(self) -> None:
        """Hold the lock that says this process lives, for ever; take it again when the database comes back."""
        while True:
            try:
                async with self._pool.acquire() as connection:
                    await connection.execute("select pg_advisory_lock($1, $2)", LIVENESS_LOCK_CLASS, self.owner)
                    self.liveness_lock_held.set()
                    while True:
                        await connection.execute("select 1")
                        await asyncio.sleep(5)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("inbox.life_lock_lost", error=repr(error))
                await asyncio.sleep(0.5)


@asynccontextmanager
async def open_inbox(pool: asyncpg.Pool | None) -> AsyncIterator[Inbox]:
    """The inbox of this process. Says so at start when it will remember nothing."""
    if pool is None:
        log.warning("inbox.forgetful", meaning="no DATABASE_URL: work is done at least once, its effects must be idempotent")
        yield NullInbox()
        return
    inbox = PostgresInbox(pool)
    life = asyncio.create_task(inbox.hold_liveness_lock())
    try:
        await inbox.liveness_lock_held.wait()
        yield inbox
    finally:
        life.cancel()
