"""Conversations: answers what was said, and forgets it when told to. They are kept by the step `text`, in the same tables.

A tenant sees its own alone.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Record

from actors.llm import conversation_repository
from actors.llm.conversation_repository import SQL, ConversationRepository, open_conversations
from bus.actor import Actor, Context, Handler, OpenHandler, Resources
from bus.errors import PermanentError
from contracts.conversation import (
    Conversation,
    ConversationDeleted,
    ConversationLine,
    DeleteConversation,
    GetConversation,
    ListConversations,
)
from contracts.conversation import Conversations as Listed
from contracts.wire import Command, Result

PREVIEW_CHARS = 50
QueryHandler = Callable[..., Coroutine[Any, Any, Result]]


async def list_conversations(command: ListConversations, context: Context, *, repository: ConversationRepository) -> Listed:
    tenant = context.tenant or ""
    rows = await repository.pool.fetch(SQL["lines"], tenant, command.limit, command.offset)
    totals = await repository.pool.fetchrow(SQL["totals"], tenant)
    return Listed(conversations=list(map(to_summary, rows)), total_conversations=totals["conversations"], total_messages=totals["messages"])


def to_summary(row: Record) -> ConversationLine:
    preview = row["preview"]
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
    async with repository.lock_conversation(command.conversation_id):
        await repository.delete(command.conversation_id, context.tenant or "")
    return ConversationDeleted(conversation_id=command.conversation_id)


def with_repository(handler: QueryHandler) -> OpenHandler:
    @asynccontextmanager
    async def opened(tools: Resources) -> AsyncIterator[Handler]:
        async with open_conversations(tools.database) as kept:
            if kept is None:
                raise PermanentError("database-missing", "conversations are kept in Postgres: set DATABASE_URL")
            yield partial(handler, kept=kept)

    return opened


def query_actor(step: str, command: type[Command], result: type[Result], handler: QueryHandler, description: str) -> Actor:
    return Actor(
        step=step,
        command=command,
        result=result,
        open=with_repository(handler),
        timeout_seconds=30,
        prefetch=16,
        deduplicate=False,
        emit_events=False,
        is_query=True,
        schema=conversation_repository.SCHEMA,
        description=description,
    )


ACTORS = (
    query_actor("conversation.list", ListConversations, Listed, list_conversations, "Answers with a tenant's conversations."),
    query_actor("conversation.get", GetConversation, Conversation, get_conversation, "Answers with all that was said in one."),
    query_actor("conversation.delete", DeleteConversation, ConversationDeleted, delete_conversation, "Forgets one."),
)
