"""Conversations in Postgres: what was said before, and a turn kept in the transaction that remembers the work.

One turn of a conversation at a time, in the order in which they came: in this process by a lock, among processes by an advisory lock.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import asyncpg
from asyncpg import Connection, Pool

from bus.errors import PermanentError, TemporaryError
from bus.sql import load_queries
from contracts.conversation import Said

SQL = load_queries(__file__, "conversations.sql")
SCHEMA = SQL["schema"]
LOCK_CLASS = 4_275
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.02, 0.5
MOST_REMEMBERED = 2000
"""Messages that are read for a prompt; the context length cuts them further."""


@dataclass(frozen=True)
class Past:
    """A conversation as it was when the turn began. `turns`: so many questions were answered before."""

    conversation_id: str
    tenant: str
    turns: int = 0
    messages: tuple[tuple[str, str], ...] = ()


@dataclass
class Queue:
    """The turns of one conversation in this process."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    heads: int = 0


@dataclass
class Conversations:
    pool: Pool
    locks: "Locks"
    queues: dict[str, Queue] = field(default_factory=dict)

    @asynccontextmanager
    async def turn(self, conversation_id: str) -> AsyncIterator[None]:
        """Whoever is inside may read the past and add to it; others of the same conversation wait, first come first."""
        queue = self.queues.setdefault(conversation_id, Queue())
        queue.heads += 1
        try:
            async with queue.lock, self.locks.held(conversation_id):
                yield
        finally:
            queue.heads -= 1
            if not queue.heads:
                del self.queues[conversation_id]

    async def name(self, conversation_id: str | None, tenant: str, message_id: str) -> str:
        """An id that is unknown, or another tenant's, gets a new one: always the same for one message, however often it comes."""
        if conversation_id and await self.pool.fetchval(SQL["known"], conversation_id, tenant):
            return conversation_id
        return str(uuid5(NAMESPACE_OID, f"atelier/conversation/{message_id}"))

    async def past(self, conversation_id: str, tenant: str) -> Past:
        async with self.pool.acquire() as connection, connection.transaction():
            turns = await connection.fetchval(SQL["history"], conversation_id, tenant)
            rows = await connection.fetch(SQL["last_messages"], conversation_id, MOST_REMEMBERED) if turns else ()
        return Past(conversation_id, tenant, turns or 0, tuple((row["role"], row["content"]) for row in rows))

    async def said(self, conversation_id: str, tenant: str) -> list[Said]:
        rows = await self.pool.fetch(SQL["messages"], conversation_id, tenant)
        if not rows:
            raise unknown()
        return [Said.model_validate(dict(row)) for row in rows]

    async def delete(self, conversation_id: str, tenant: str) -> None:
        if not await self.pool.fetchval(SQL["delete"], conversation_id, tenant):
            raise unknown()


def unknown() -> PermanentError:
    return PermanentError("conversation-unknown", "대화를 찾을 수 없습니다")


async def keep(connection: Connection, past: Past, question: Said, answer: str) -> None:
    """Append a turn. Raises TemporaryError when another turn came in between: its answer was not known when this one was written."""
    await connection.execute(SQL["begin"], past.conversation_id, past.tenant)
    turns = await connection.fetchval(SQL["turn"], past.conversation_id, past.tenant, past.turns)
    if turns is None:
        raise TemporaryError(f"another turn of conversation {past.conversation_id} came in between", code="conversation-busy")
    answered = Said(role="assistant", content=answer, timestamp=datetime.now(UTC))
    for number, said in ((2 * turns - 1, question), (2 * turns, answered)):
        await connection.execute(SQL["append"], past.conversation_id, number, *row_of(said))


def row_of(said: Said) -> tuple[Any, ...]:
    content = said.content.replace("\0", "\ufffd")  # Postgres keeps no NUL.
    return said.role, content, said.timestamp, said.image_info, said.file_info


class Locks:
    """Advisory locks on one connection, which is taken from the pool when it is first needed and again when it is lost."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: Any = None
        self._one = asyncio.Lock()

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[None]:
        poll = FIRST_POLL_SECONDS
        while not await self._ask("lock", name):
            await asyncio.sleep(poll)
            poll = min(2 * poll, LONGEST_POLL_SECONDS)
        try:
            yield
        finally:
            # A connection that is gone has given its locks back.
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.shield(self._ask("unlock", name))

    async def _ask(self, query: str, name: str) -> bool:
        async with self._one:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._pool.acquire()
            return bool(await self._connection.fetchval(SQL[query], LOCK_CLASS, name))

    async def close(self) -> None:
        if self._connection is not None:
            await self._pool.release(self._connection)


@asynccontextmanager
async def open_conversations(pool: Pool | None) -> AsyncIterator[Conversations | None]:
    if pool is None:
        yield None
        return
    locks = Locks(pool)
    try:
        yield Conversations(pool, locks)
    finally:
        await locks.close()
