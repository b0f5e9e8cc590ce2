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
from contracts.conversation import ConversationMessage

SQL = load_queries(__file__, "conversation_repository.sql")
SCHEMA = SQL["schema"]
ADVISORY_LOCK_CLASS = 4_275
FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 0.02, 0.5
MAX_HISTORY_MESSAGES = 2000
"""Messages that are read for a prompt; the context length cuts them further."""


@dataclass(frozen=True)
class History:
    """A conversation as it was when the turn began. `turns`: so many questions were answered before."""

    conversation_id: str
    tenant: str
    turn_count: int = 0
    messages: tuple[tuple[str, str], ...] = ()


@dataclass
class TurnQueue:
    """The turns of one conversation in this process."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiter_count: int = 0


@dataclass
class ConversationRepository:
    pool: Pool
    locks: "AdvisoryLocks"
    queues: dict[str, TurnQueue] = field(default_factory=dict)

    @asynccontextmanager
    async def lock_conversation(self, conversation_id: str) -> AsyncIterator[None]:
        """Whoever is inside may read the past and add to it; others of the same conversation wait, first come first."""
        queue = self.queues.setdefault(conversation_id, TurnQueue())
        queue.waiter_count += 1
        try:
            async with queue.lock, self.locks.hold(conversation_id):
                yield
        finally:
            queue.waiter_count -= 1
            if not queue.waiter_count:
                del self.queues[conversation_id]

    async def resolve_id(self, conversation_id: str | None, tenant: str, message_id: str) -> str:
        """An id that is unknown, or another tenant's, gets a new one: always the same for one message, however often it comes."""
        if conversation_id and await self.pool.fetchval(SQL["known"], conversation_id, tenant):
            return conversation_id
        return str(uuid5(NAMESPACE_OID, f"atelier/conversation/{message_id}"))

    async def load_history(self, conversation_id: str, tenant: str) -> History:
        async with self.pool.acquire() as connection, connection.transaction():
            turns = await connection.fetchval(SQL["history"], conversation_id, tenant)
            rows = await connection.fetch(SQL["last_messages"], conversation_id, MAX_HISTORY_MESSAGES) if turns else ()
        return History(conversation_id, tenant, turns or 0, tuple((row["role"], row["content"]) for row in rows))

    async def list_messages(self, conversation_id: str, tenant: str) -> list[ConversationMessage]:
        rows = await self.pool.fetch(SQL["messages"], conversation_id, tenant)
        if not rows:
            raise conversation_unknown()
        return [ConversationMessage.model_validate(dict(row)) for row in rows]

    async def delete(self, conversation_id: str, tenant: str) -> None:
        if not await self.pool.fetchval(SQL["delete"], conversation_id, tenant):
            raise conversation_unknown()


def conversation_unknown() -> PermanentError:
    return PermanentError("conversation-unknown", "대화를 찾을 수 없습니다")


async def append_turn(connection: Connection, history: History, question: ConversationMessage, answer: str) -> None:
    """Append a turn. Raises TemporaryError when another turn came in between: its answer was not known when this one was written."""
    await connection.execute(SQL["begin"], history.conversation_id, history.tenant)
    turns = await connection.fetchval(SQL["turn"], history.conversation_id, history.tenant, history.turn_count)
    if turns is None:
        raise TemporaryError(f"another turn of conversation {history.conversation_id} came in between", code="conversation-busy")
    answered = ConversationMessage(role="assistant", content=answer, timestamp=datetime.now(UTC))
    for number, said in ((2 * turns - 1, question), (2 * turns, answered)):
        await connection.execute(SQL["append"], history.conversation_id, number, *to_row(said))


def to_row(message: ConversationMessage) -> tuple[Any, ...]:
    content = message.content.replace("\0", "\ufffd")  # Postgres keeps no NUL.
    return message.role, content, message.timestamp, message.image_info, message.file_info


class AdvisoryLocks:
    """Advisory locks on one connection, which is taken from the pool when it is first needed and again when it is lost."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: Any = None
        self._connection_lock = asyncio.Lock()

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        poll = FIRST_POLL_SECONDS
        while not await self._query("lock", name):
            await asyncio.sleep(poll)
            poll = min(2 * poll, MAX_POLL_SECONDS)
        try:
            yield
        finally:
            # A connection that is gone has given its locks back.
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.shield(self._query("unlock", name))

    async def _query(self, query: str, name: str) -> bool:
        async with self._connection_lock:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._pool.acquire()
            return bool(await self._connection.fetchval(SQL[query], ADVISORY_LOCK_CLASS, name))

    async def close(self) -> None:
        if self._connection is not None:
            await self._pool.release(self._connection)


@asynccontextmanager
async def open_conversations(pool: Pool | None) -> AsyncIterator[ConversationRepository | None]:
    if pool is None:
        yield None
        return
    locks = AdvisoryLocks(pool)
    try:
        yield ConversationRepository(pool, locks)
    finally:
        await locks.close()
