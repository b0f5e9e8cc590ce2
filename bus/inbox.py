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

from bus.actor import Write
from bus.database import one_statement
from bus.errors import EngineDead, PermanentError
from bus.patience import until_back
from bus.sql import load_queries
from contracts.wire import Result

SQL = load_queries(__file__, "inbox.sql")
SCHEMA = SQL["schema"]
LIFE_LOCK_CLASS = 4_273
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.02, 1.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Known:
    """What the inbox says of a message: its result when it was done, whether its job was cancelled, how many processes died at it."""

    result: dict[str, Any] | None
    cancelled: bool
    deaths: int = 0


class Inbox(Protocol):
    async def deaths(self, step: str, message_id: str, returns: int) -> int:
        """How many processes may have died of this message. `returns`: how often the broker took it back."""
        ...

    async def claim(self, step: str, message_id: str, job_id: str) -> Known:
        """Take a message, waiting while another delivery of it is at work."""
        ...

    async def remember(self, step: str, message_id: str, result: Result, write: Write | None) -> None:
        """Keep the result, in one transaction with the actor's own write. Raises ClaimLost when the message is no longer ours."""
        ...

    async def release(self, step: str, message_id: str) -> None:
        """Give up a message that was not done."""
        ...

    async def cancel(self, job_id: str) -> None:
        """Note that a job is cancelled, for commands of it that are still to come."""
        ...


class ClaimLost(EngineDead):
    """Another process holds the message by now: whatever was done here does not count."""


class Hands:
    """What this process has in hand: two deliveries of one message never run side by side in it."""

    def __init__(self) -> None:
        self._busy: dict[tuple[str, str], asyncio.Event] = {}

    async def take(self, step: str, message_id: str) -> None:
        """Take a message, waiting while another delivery of it is in hand."""
        while busy := self._busy.get((step, message_id)):
            await busy.wait()
        self._busy[step, message_id] = asyncio.Event()

    def let_go(self, step: str, message_id: str) -> None:
        if done := self._busy.pop((step, message_id), None):
            done.set()


class ForgetfulInbox:
    """Remembers nothing: two deliveries of one message never run side by side in this process; nothing more is promised."""

    def __init__(self, pool: asyncpg.Pool | None = None) -> None:
        self._pool = pool
        self._hands = Hands()
        self._cancelled: set[str] = set()

    async def deaths(self, step: str, message_id: str, returns: int) -> int:
        """Nobody remembers who was at work: each return but the first, which a lost connection explains, counts as a death."""
        return max(0, returns - 1)

    async def claim(self, step: str, message_id: str, job_id: str) -> Known:
        await self._hands.take(step, message_id)
        return Known(None, job_id in self._cancelled)

    async def remember(self, step: str, message_id: str, result: Result, write: Write | None) -> None:
        if write:
            await until_back(lambda: self._write(step, write), "database")
        await self.release(step, message_id)

    async def _write(self, step: str, write: Write) -> None:
        if self._pool is None:
            raise PermanentError("database-missing", f"{step} keeps tables: set DATABASE_URL for its process")
        async with self._pool.acquire() as connection, connection.transaction():
            await write(connection)

    async def release(self, step: str, message_id: str) -> None:
        self._hands.let_go(step, message_id)

    async def cancel(self, job_id: str) -> None:
        self._cancelled.add(job_id)


class PostgresInbox:
    """Outcomes in the table `atelier.inbox`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._hands = Hands()
        self.owner = secrets.randbelow(2**31 - 1) + 1
        self.alive = asyncio.Event()

    async def deaths(self, step: str, message_id: str, returns: int) -> int:
        """A message that was taken back but never at work has killed nobody."""
        if not returns:
            return 0
        return await until_back(lambda: self._pool.fetchval(SQL["deaths"], step, message_id, LIFE_LOCK_CLASS), "database") or 0

    async def claim(self, step: str, message_id: str, job_id: str) -> Known:
        await self._hands.take(step, message_id)
        try:
            known = await self._claim(step, message_id, job_id)
        except BaseException:
            self._hands.let_go(step, message_id)
            raise
        if known.result is not None:
            self._hands.let_go(step, message_id)
        return known

    async def _claim(self, step: str, message_id: str, job_id: str) -> Known:
        poll = FIRST_POLL_SECONDS
        while True:
            row = await until_back(lambda: self._ask(SQL["claim"], step, message_id, self.owner, LIFE_LOCK_CLASS, job_id), "database")
            if row["mine"] or row["result"] is not None:
                return Known(row["result"], row["cancelled"], row["deaths"])
            await asyncio.sleep(poll)
            poll = min(poll * 2, LONGEST_POLL_SECONDS)

    async def remember(self, step: str, message_id: str, result: Result, write: Write | None) -> None:
        await until_back(lambda: self._remember(step, message_id, result, write), "database")
        self._hands.let_go(step, message_id)

    async def _remember(self, step: str, message_id: str, result: Result, write: Write | None) -> None:
        said = (SQL["remember"], step, message_id, self.owner, result.model_dump(mode="json", exclude_none=True))
        if write is None:  # one statement is its own transaction, and saves two round trips
            ours = await self._ask(*said)
        else:
            async with self._pool.acquire() as connection, connection.transaction():
                if ours := await connection.fetchval(*said):
                    await write(connection)
        if not ours:
            raise ClaimLost(f"message {message_id} of {step} is held by another process by now")

    async def _ask(self, *statement: Any) -> Any:
        async with one_statement(self._pool) as line:
            return await line.fetchrow(*statement)

    async def release(self, step: str, message_id: str) -> None:
        try:
            await until_back(lambda: self._ask(SQL["release"], step, message_id, self.owner), "database")
        finally:
            self._hands.let_go(step, message_id)

    async def cancel(self, job_id: str) -> None:
        await until_back(lambda: self._pool.execute(SQL["cancel"], job_id), "database")

    async def forget(self, days: float) -> int:
        """Delete outcomes older than `days`; returns how many."""
        return int(await self._pool.fetchval(SQL["forget"], days))

    async def stay_alive(self) -> None:
        """Hold the lock that says this process lives, for ever; take it again when the database comes back."""
        while True:
            try:
                async with self._pool.acquire() as connection:
                    await connection.execute("select pg_advisory_lock($1, $2)", LIFE_LOCK_CLASS, self.owner)
                    self.alive.set()
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
        yield ForgetfulInbox()
        return
    inbox = PostgresInbox(pool)
    life = asyncio.create_task(inbox.stay_alive())
    try:
        await inbox.alive.wait()
        yield inbox
    finally:
        life.cancel()
