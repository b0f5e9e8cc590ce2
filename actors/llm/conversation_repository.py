"""Conversations in Postgres: their messages, and the turn that is appended in the transaction that marks the message done.

The turns of one conversation run one at a time, in order of arrival: a lock of this process first, then an advisory lock for all processes.
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
DATABASE_MISSING = "conversations are kept in Postgres: set DATABASE_URL"
ADVISORY_LOCK_CLASS = 4_275
FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 0.02, 0.5
MAX_HISTORY_MESSAGES = 2000
"""Messages that are read for a prompt; the model's context length limits them further."""


@dataclass(frozen=True)
class History:
    """A conversation when a turn begins. `messages`: pairs of role and content. `turn_count`: questions answered before."""

    conversation_id: str
    tenant: str
    turn_count: int = 0
    messages: tuple[tuple[str, str], ...] = ()


@dataclass
class TurnQueue:
    """The turns of one conversation that run or wait in this process."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiter_count: int = 0


@dataclass
class ConversationRepository:
    """Reads and deletes conversations; raises PermanentError("conversation-unknown") for an id that the tenant does not have."""

    pool: Pool
    locks: "AdvisoryLocks"
    queues: dict[str, TurnQueue] = field(default_factory=dict)

    @asynccontextmanager
    async def lock_conversation(self, conversation_id: str) -> AsyncIterator[None]:
        """Held for one turn. Other turns of the same conversation wait; those of this process in order of arrival."""
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
        """An id that is unknown, or another tenant's, is replaced by a new one, which is the same at every delivery of one message."""
        if conversation_id and await self.pool.fetchval(SQL["conversation_exists"], conversation_id, tenant):
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

    async def require(self, conversation_id: str, tenant: str) -> None:
        if not await self.pool.fetchval(SQL["conversation_exists"], conversation_id, tenant):
            raise conversation_unknown()

    async def delete(self, conversation_id: str, tenant: str) -> None:
        if not await self.pool.fetchval(SQL["delete"], conversation_id, tenant):
            raise conversation_unknown()


def conversation_unknown() -> PermanentError:
    return PermanentError("conversation-unknown", "대화를 찾을 수 없습니다")


async def append_turn(connection: Connection, history: History, question: ConversationMessage, answer: str) -> None:
    """Raises TemporaryError when another turn was appended meanwhile: this answer was generated without it."""
    await connection.execute(SQL["begin"], history.conversation_id, history.tenant)
    turns = await connection.fetchval(SQL["turn"], history.conversation_id, history.tenant, history.turn_count)
    if turns is None:
        raise TemporaryError(f"another turn was appended to conversation {history.conversation_id} meanwhile", code="conversation-busy")
    reply = ConversationMessage(role="assistant", content=answer, timestamp=datetime.now(UTC))
    for number, message in ((2 * turns - 1, question), (2 * turns, reply)):
        await connection.execute(SQL["append"], history.conversation_id, number, *to_row(message))


def to_row(message: ConversationMessage) -> tuple[Any, ...]:
    content = message.content.replace("\0", "\ufffd")  # Postgres cannot store NUL.
    return message.role, content, message.timestamp, message.image_info, message.file_info


class AdvisoryLocks:
    """Advisory locks on one connection, taken from the pool at first use and again after a loss."""

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
            # The server frees the locks of a lost connection.
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
async def open_conversations(pool: Pool) -> AsyncIterator[ConversationRepository]:
    locks = AdvisoryLocks(pool)
    try:
        yield ConversationRepository(pool, locks)
    finally:
        await locks.close()
