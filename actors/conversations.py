"""Conversations: lists, returns and deletes the conversations that the step `text` stores, in the same tables.

A tenant sees only its own.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Record

from actors.llm.conversation_repository import SCHEMA, SQL, ConversationRepository, open_conversations
from bus.actor import Context, Handler, OpenHandler, Resources, query_actor
from bus.persistence.pool import snapshot
from contracts.conversation import (
    Conversation,
    ConversationDeleted,
    ConversationLine,
    DeleteConversation,
    GetConversation,
    ListConversations,
)
from contracts.conversation import Conversations as ConversationPage
from contracts.wire import Result

PREVIEW_CHARS = 50


async def list_conversations(command: ListConversations, context: Context, *, repository: ConversationRepository) -> ConversationPage:
    tenant = context.tenant or ""
    async with snapshot(repository.pool) as connection:
        rows = await connection.fetch(SQL["summaries"], tenant, command.limit, command.offset)
        totals = await connection.fetchrow(SQL["totals"], tenant)
    return ConversationPage(
        conversations=list(map(to_summary, rows)), total_conversations=totals["conversations"], total_messages=totals["messages"]
    )


def to_summary(row: Record) -> ConversationLine:
    preview = row["preview"].decode(errors="ignore")  # a database without an encoding may have cut a character
    return ConversationLine(
        conversation_id=row["conversation_id"],
        message_count=row["message_count"],
        last_message_time=row["last_message_time"],
        last_message_preview=preview if len(preview) <= PREVIEW_CHARS else f"{preview[:PREVIEW_CHARS]}...",
    )


async def get_conversation(command: GetConversation, context: Context, *, repository: ConversationRepository) -> Conversation:
    messages = await repository.list_messages(command.conversation_id, context.tenant or "")
    return Conversation(conversation_id=command.conversation_id, messages=messages, message_count=len(messages))


async def delete_conversation(command: DeleteConversation, context: Context, *, repository: ConversationRepository) -> ConversationDeleted:
    """Another tenant's is refused before the wait for its turn."""
    await repository.require(command.conversation_id, context.tenant or "")
    async with repository.lock_conversation(command.conversation_id):
        await repository.delete(command.conversation_id, context.tenant or "")
    return ConversationDeleted(conversation_id=command.conversation_id)


def with_repository(handler: Callable[..., Coroutine[Any, Any, Result]]) -> OpenHandler:
    """Opens `handler` with the conversations as its keyword argument `repository`."""

    @asynccontextmanager
    async def open_handler(resources: Resources) -> AsyncIterator[Handler]:
        yield partial(handler, repository=open_conversations(resources))

    return open_handler


conversation_query = partial(query_actor, timeout_seconds=30, prefetch=16, schema=SCHEMA)

ACTORS = (
    conversation_query(
        "conversation.list",
        ListConversations,
        ConversationPage,
        with_repository(list_conversations),
        "Returns a tenant's conversations, the latest first.",
    ),
    conversation_query(
        "conversation.get", GetConversation, Conversation, with_repository(get_conversation), "Returns all messages of one conversation."
    ),
    conversation_query(
        "conversation.delete", DeleteConversation, ConversationDeleted, with_repository(delete_conversation), "Deletes one conversation."
    ),
)
