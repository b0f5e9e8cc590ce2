"""The inbox: which messages are done, and with what result, so that a message that is delivered twice has its effect once.

An entry belongs to a message with its tenant, job and content; see `entry_id.py`. A process acquires a message before it runs the
handler, so that two deliveries of it never run concurrently. Each process holds one advisory lock while it is connected; a message whose
owner's lock is gone is free to be acquired again.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import asyncpg
import structlog

from bus.actor import DatabaseWrite, GroupableWrite
from bus.errors import AttemptInterrupted, PermanentError
from bus.persistence.group_commit import GroupCommit
from bus.persistence.kept_connection import KeptConnection
from bus.persistence.pool import CLOSE_TIMEOUT_SECONDS, encode_postgres_json, stateless_connection
from bus.persistence.purge import purge_periodically
from bus.persistence.server_check import OTHER_DATABASE
from bus.persistence.session_locks import CONNECTION_ERRORS, LockLost, SessionLocks
from bus.retry import retry_while_unavailable
from bus.sql import load_queries
from contracts.wire import Result

SQL = load_queries(__file__, "inbox.sql")
SCHEMA = SQL["schema"]
LIVENESS_LOCK_CLASS = 4_273
LIVENESS_CHECK_SECONDS = 5.0
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.02, 1.0
MAX_FORMER_IDS = 2
"""Of a message in a group; `former_entry_ids` returns no more. A message with more is acquired alone."""
MAX_CANCELLED = 10_000
"""Cancelled jobs that a process without a database remembers, the latest."""

log = structlog.get_logger()


@dataclass(frozen=True)
class InboxEntry:
    """What the inbox knows of a message: its result if it is done, whether its job is cancelled, how many processes crashed on it.

    `former`: an earlier release stored the result, under the message id alone. Who sends that id may be another publisher.
    """

    result: dict[str, Any] | None
    cancelled: bool
    crash_count: int = 0
    former: bool = False


class Inbox(Protocol):
    is_persistent: bool
    """Whether results and crash counts outlive this process."""

    async def crash_count(self, step: str, entry_id: str, redelivery_count: int) -> int:
        """How many processes may have crashed on the message. `redelivery_count`: how often it was returned to its queue."""
        ...

    async def acquire(self, step: str, entry_id: str, job_id: str, former_ids: Sequence[str] = ()) -> InboxEntry:
        """Acquire a message; waits while another delivery of it is running, and while this process has lost its liveness lock.

        Not acquired when the entry has a result.

        `former_ids`: the message's entries of earlier releases, recognised for one release.
        """
        ...

    async def mark_done(self, step: str, entry_id: str, result: Result, write: DatabaseWrite | None) -> None:
        """Store the result, in one transaction with the actor's own write, and release the message. Raises OwnershipLost."""
        ...

    async def release(self, step: str, entry_id: str) -> None:
        """Release a message that is not done."""
        ...

    async def cancel(self, job_id: str) -> None:
        """Mark a job as cancelled, for its commands that are still to come."""
        ...

    async def purge(self, days: float) -> int:
        """Delete what is older than `days`; returns how many entries."""
        ...


class OwnershipLost(AttemptInterrupted):
    """Another process has acquired the message meanwhile: the result of this run does not count."""


class InFlightKeys:
    """The messages in flight in this process: two deliveries of one message never run concurrently in it."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], asyncio.Event] = {}

    async def acquire(self, step: str, entry_id: str) -> None:
        """Wait while another delivery of the message is in flight."""
        while released := self._events.get((step, entry_id)):
            await released.wait()
        self._events[step, entry_id] = asyncio.Event()

    def release(self, step: str, entry_id: str) -> None:
        if released := self._events.pop((step, entry_id), None):
            released.set()


class NullInbox:
    """Keeps no results: it only prevents that two deliveries of one message run concurrently in this process."""

    is_persistent = False

    def __init__(self, pool: asyncpg.Pool | None = None) -> None:
        self._pool = pool
        self._in_flight = InFlightKeys()
        self._writes = GroupCommit(self._write_group)
        self._cancelled: OrderedDict[str, None] = OrderedDict()

    async def crash_count(self, step: str, entry_id: str, redelivery_count: int) -> int:
        """No record of running messages exists: every return but the first, which a lost connection explains, counts as a crash."""
        return max(0, redelivery_count - 1)

    async def acquire(self, step: str, entry_id: str, job_id: str, former_ids: Sequence[str] = ()) -> InboxEntry:
        await self._in_flight.acquire(step, entry_id)
        return InboxEntry(None, job_id in self._cancelled)

    async def mark_done(self, step: str, entry_id: str, result: Result, write: DatabaseWrite | None) -> None:
        if write and self._pool is None:
            raise PermanentError("database-missing", f"{step} keeps tables: set DATABASE_URL for its process")
        if isinstance(write, GroupableWrite):
            await self._writes.submit(write, write.size)
        elif write:
            await retry_while_unavailable(lambda: self._write(write), "database")
        await self.release(step, entry_id)

    async def _write(self, write: DatabaseWrite) -> None:
        assert self._pool is not None
        async with self._pool.acquire() as connection, connection.transaction():
            await write(connection)

    async def _write_group(self, writes: Sequence[GroupableWrite]) -> list[None]:
        """In one transaction, with one call for all items of a `write_many`."""
        assert self._pool is not None
        items: dict[Any, list[Any]] = {}
        for write in writes:
            items.setdefault(write.write_many, []).append(write.item)
        async with stateless_connection(self._pool) as connection, connection.transaction():
            for write_many, group in items.items():
                await write_many(connection, group)
        return [None] * len(writes)

    async def release(self, step: str, entry_id: str) -> None:
        self._in_flight.release(step, entry_id)

    async def cancel(self, job_id: str) -> None:
        self._cancelled[job_id] = None
        self._cancelled.move_to_end(job_id)
        if len(self._cancelled) > MAX_CANCELLED:
            self._cancelled.popitem(last=False)

    async def purge(self, days: float) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Acquisition:
    """The arguments of `Inbox.acquire`."""

    step: str
    entry_id: str
    job_id: str
    former_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class DoneMessage:
    """`result`: as JSON, encoded once."""

    step: str
    entry_id: str
    result: str


class PostgresInbox:
    """Results in the table `atelier.inbox`. Messages that are acquired, marked done or released at the same time share a statement."""

    is_persistent = True

    def __init__(self, pool: asyncpg.Pool, locks: SessionLocks) -> None:
        self._pool, self._locks = pool, locks
        self._kept = KeptConnection(pool)
        self._in_flight = InFlightKeys()
        self._statements: GroupCommit[Acquisition | DoneMessage, Any] = GroupCommit(self._send)
        self._releases = GroupCommit(self._release_group)
        self._background: set[asyncio.Task[None]] = set()
        self._acquiring: set[asyncio.Task[Any]] = set()
        self.owner = secrets.randbelow(2**31 - 1) + 1
        self.liveness_lock_held = asyncio.Event()

    async def crash_count(self, step: str, entry_id: str, redelivery_count: int) -> int:
        """A message that was returned without ever running has crashed no process."""
        if not redelivery_count:
            return 0
        return (
            await retry_while_unavailable(lambda: self._pool.fetchval(SQL["crash_count"], step, entry_id, LIVENESS_LOCK_CLASS), "database")
            or 0
        )

    async def acquire(self, step: str, entry_id: str, job_id: str, former_ids: Sequence[str] = ()) -> InboxEntry:
        await self._in_flight.acquire(step, entry_id)
        task = asyncio.current_task()
        assert task
        self._acquiring.add(task)  # `close` waits for a caller that is cancelled while its statement is under way
        try:
            entry = await self._acquire(Acquisition(step, entry_id, job_id, former_ids))
        except asyncio.CancelledError:
            self._release_in_background(step, entry_id)  # it may have been acquired all the same
            raise
        except BaseException:
            self._in_flight.release(step, entry_id)
            raise
        finally:
            self._acquiring.discard(task)
        if entry.result is not None:
            self._in_flight.release(step, entry_id)
        return entry

    async def _acquire(self, message: Acquisition) -> InboxEntry:
        entry: InboxEntry | None = await self._statements.submit(message)
        poll = FIRST_POLL_SECONDS
        while entry is None:
            entry = await retry_while_unavailable(lambda: self._statements.send_alone(message), "database")
            if entry is None:
                await asyncio.sleep(poll)
                poll = min(poll * 2, LONGEST_POLL_SECONDS)
        return entry

    async def _send(self, messages: Sequence[Acquisition | DoneMessage]) -> list[InboxEntry | bool | None]:
        """An entry for a message that is acquired, whether this process owned it for one that is done.

        None for one that a group leaves to a statement of its own: it has an entry, its entry is locked, or this process does not own it.
        None as well for one that is not acquired alone.
        """
        if len(messages) == 1:
            (message,) = messages
            return [await (self._acquire_alone(message) if isinstance(message, Acquisition) else self._mark_one_done(message))]
        new, done = [], []
        for message in sorted(messages, key=lambda message: (message.step, message.entry_id)):
            if isinstance(message, DoneMessage):
                done.append((message.step, message.entry_id, message.result))
            elif len(message.former_ids) <= MAX_FORMER_IDS:
                new.append((message.step, message.entry_id, message.job_id, *message.former_ids, None, None)[:5])
        rows = await self._kept.fetch(SQL["group"], *_columns(new, 5), *_columns(done, 3), self.owner, LIVENESS_LOCK_CLASS)
        written = set(map(tuple, rows))
        return [_answer(message, written) for message in messages]

    async def _acquire_alone(self, message: Acquisition) -> InboxEntry | None:
        """None while a live process owns it, and while this one has lost its liveness lock."""
        arguments = (message.step, message.entry_id, self.owner, LIVENESS_LOCK_CLASS, message.job_id, list(message.former_ids))
        (row,) = await self._kept.fetch(SQL["acquire"], *arguments)
        if row["owned"] or row["result"] is not None:
            return InboxEntry(row["result"], row["cancelled"], row["deaths"], row["former"])
        return None

    async def mark_done(self, step: str, entry_id: str, result: Result, write: DatabaseWrite | None) -> None:
        message = DoneMessage(step, entry_id, encode_postgres_json(result.model_dump(mode="json", exclude_none=True)))
        if not await self._mark_done(message, write) and not await self._is_done(message):
            raise OwnershipLost(f"message {entry_id} of {step} has been acquired by another process")
        self._in_flight.release(step, entry_id)

    async def _is_done(self, message: DoneMessage) -> bool:
        """Whether the result is stored all the same: its transaction was committed, and the response was lost."""
        arguments = (message.step, message.entry_id, message.result)
        return bool(await retry_while_unavailable(lambda: self._kept.fetch(SQL["is_done"], *arguments), "database"))

    async def _mark_done(self, message: DoneMessage, write: DatabaseWrite | None) -> bool:
        """Whether this process still owned the message."""
        if write is None:
            owned: bool | None = await self._statements.submit(message, len(message.result))
            if owned is None:
                owned = await retry_while_unavailable(lambda: self._statements.send_alone(message), "database")
            return bool(owned)
        return await retry_while_unavailable(lambda: self._mark_done_with(message, write), "database")

    async def _mark_done_with(self, message: DoneMessage, write: DatabaseWrite) -> bool:
        async with self._pool.acquire() as connection, connection.transaction():
            if owned := await connection.fetchval(SQL["mark_done"], message.step, message.entry_id, self.owner, message.result):
                await write(connection)
        return bool(owned)

    async def _mark_one_done(self, message: DoneMessage) -> bool:
        return bool(await self._kept.fetch(SQL["mark_done"], message.step, message.entry_id, self.owner, message.result))

    async def release(self, step: str, entry_id: str) -> None:
        await asyncio.shield(self._release_in_background(step, entry_id))

    def _release_in_background(self, step: str, entry_id: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._release(step, entry_id))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _release(self, step: str, entry_id: str) -> None:
        try:
            await self._releases.submit((step, entry_id))
        finally:
            self._in_flight.release(step, entry_id)

    async def _release_group(self, keys: Sequence[tuple[str, str]]) -> list[None]:
        await self._kept.fetch(SQL["release"], [step for step, _ in keys], [entry_id for _, entry_id in keys], self.owner)
        return [None] * len(keys)

    async def close(self) -> None:
        """Wait for the releases of cancelled deliveries, at most CLOSE_TIMEOUT_SECONDS: a message that is not released counts a crash."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                while waiting := self._background | {task for task in self._acquiring if task.cancelling()}:
                    await asyncio.wait(waiting)
        for task in self._background:
            task.cancel()
        await self._kept.close()

    async def cancel(self, job_id: str) -> None:
        await retry_while_unavailable(lambda: self._pool.execute(SQL["cancel"], job_id), "database")

    async def purge(self, days: float) -> int:
        return int(await self._pool.fetchval(SQL["purge"], days))

    async def hold_liveness_lock(self) -> None:
        """Hold the advisory lock that shows that this process is alive; take it again after a lost connection. Never returns."""
        while True:
            try:
                self._locks.lost.clear()
                if await self._locks.fetchval(SQL["hold_liveness_lock"], LIVENESS_LOCK_CLASS, self.owner):
                    self.liveness_lock_held.set()
                    await self._follow_pool()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._locks.lost.wait(), LIVENESS_CHECK_SECONDS)
                    continue
            except CONNECTION_ERRORS as error:
                log.warning("inbox.liveness_lock_lost", error=repr(error))
            await asyncio.sleep(0.5)

    async def _follow_pool(self) -> None:
        """After a failover the lock may be held on the former primary, where the pool's server does not know it: connect again."""
        if not await self._is_lock_visible():
            self._locks.disconnect()
            raise LockLost("the pool's server does not know the lock of this process")

    async def _is_lock_visible(self) -> bool:
        return bool(await self._kept.fetch(SQL["is_alive"], LIVENESS_LOCK_CLASS, self.owner))

    async def require_visible_lock(self) -> None:
        """Raises PermanentError("database-other") when the pool's database does not know the lock that this process holds."""
        if not await retry_while_unavailable(self._is_lock_visible, "database"):
            raise PermanentError("database-other", OTHER_DATABASE)


def _columns(rows: Sequence[tuple[Any, ...]], count: int) -> Sequence[Sequence[Any]]:
    return list(zip(*rows, strict=True)) or [()] * count


def _answer(message: Acquisition | DoneMessage, written: set[tuple[str | None, str]]) -> InboxEntry | bool | None:
    """From what the statement of a group returns."""
    is_written = (message.step, message.entry_id) in written
    if not is_written:
        return None
    return isinstance(message, DoneMessage) or InboxEntry(None, cancelled=(None, message.job_id) in written)


@asynccontextmanager
async def open_inbox(pool: asyncpg.Pool | None, locks: SessionLocks | None) -> AsyncIterator[Inbox]:
    """The inbox of this process; without a database one that keeps nothing."""
    if pool is None or locks is None:
        log.warning("inbox.disabled", meaning="no DATABASE_URL: messages are processed at least once, their effects must be idempotent")
        yield NullInbox()
        return
    inbox = PostgresInbox(pool, locks)
    liveness_task = asyncio.create_task(inbox.hold_liveness_lock())
    try:
        await inbox.liveness_lock_held.wait()
        await inbox.require_visible_lock()
        yield inbox
    finally:
        try:
            await inbox.close()
        finally:
            liveness_task.cancel()


def purge_inbox_loop(inbox: Inbox, days: float) -> AbstractAsyncContextManager[None]:
    """Delete entries older than `days` at intervals, inside the block."""
    return purge_periodically("inbox", lambda: inbox.purge(days)) if inbox.is_persistent else nullcontext()
