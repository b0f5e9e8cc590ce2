"""Conversations in Postgres: their messages, and the turn that is appended in the transaction that marks the message done.

The turns of one conversation run one at a time, in order of arrival in a process, whatever process runs them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from asyncpg import Connection, Pool

from bus.actor import Resources
from bus.errors import PermanentError, TemporaryError
from bus.persistence.session_locks import SessionLocks
from bus.sql import load_queries
from contracts.conversation import ConversationMessage

SQL = load_queries(__file__, "conversation_repository.sql")
SCHEMA = SQL["schema"]
DATABASE_MISSING = "conversations are kept in Postgres: set DATABASE_URL"
ADVISORY_LOCK_CLASS = 4_275
MAX_HISTORY_MESSAGES = 2000
"""Messages that are read for a prompt; the model's context length limits them further."""


@dataclass(frozen=True)
class History:
    """A conversation when a turn begins. `messages`: pairs of role and content. `turn_count`: questions answered before."""

    conversation_id: str
    tenant: str
    turn_count: int = 0
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ConversationRepository:
    """Reads and deletes conversations; raises PermanentError("conversation-unknown") for an id that the tenant does not have."""

    pool: Pool
    locks: SessionLocks

    @asynccontextmanager
    async def lock_conversation(self, conversation_id: str) -> AsyncIterator[None]:
        """Held for one turn. Other turns of the same conversation wait; those of this process in order of arrival."""
        async with self.locks.hold(SQL["lock"], SQL["unlock"], ADVISORY_LOCK_CLASS, conversation_id):
            yield

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


def open_conversations(resources: Resources) -> ConversationRepository:
    """Raises PermanentError("database-missing")."""
    return ConversationRepository(resources.require_database(DATABASE_MISSING), resources.require_locks(DATABASE_MISSING))


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
