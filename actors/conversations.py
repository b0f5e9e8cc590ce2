"""Conversations: answers what was said, and forgets it when told to. They are kept by the step `text`, in the same tables.

A tenant sees its own alone.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Record

from actors.writing import conversations
from actors.writing.conversations import SQL, Conversations, open_conversations
from bus.actor import Actor, Context, Handler, Open, Tools
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

PREVIEW = 50
Answer = Callable[..., Coroutine[Any, Any, Result]]


async def list_them(command: ListConversations, context: Context, *, kept: Conversations) -> Listed:
    tenant = context.tenant or ""
    rows = await kept.pool.fetch(SQL["lines"], tenant, command.limit, command.offset)
    totals = await kept.pool.fetchrow(SQL["totals"], tenant)
    return Listed(conversations=list(map(line, rows)), total_conversations=totals["conversations"], total_messages=totals["messages"])


def line(row: Record) -> ConversationLine:
    preview = row["preview"]
    return ConversationLine(
        conversation_id=row["conversation_id"],
        message_count=row["message_count"],
        last_message_time=row["last_message_time"],
        last_message_preview=preview if len(preview) <= PREVIEW else f"{preview[:PREVIEW]}...",
    )


async def get_one(command: GetConversation, context: Context, *, kept: Conversations) -> Conversation:
    messages = await kept.said(command.conversation_id, context.tenant or "")
    return Conversation(conversation_id=command.conversation_id, messages=messages, message_count=len(messages))


async def delete_one(command: DeleteConversation, context: Context, *, kept: Conversations) -> ConversationDeleted:
    async with kept.turn(command.conversation_id):
        await kept.delete(command.conversation_id, context.tenant or "")
    return ConversationDeleted(conversation_id=command.conversation_id)


def answering(answer: Answer) -> Open:
    @asynccontextmanager
    async def opened(tools: Tools) -> AsyncIterator[Handler]:
        async with open_conversations(tools.database) as kept:
            if kept is None:
                raise PermanentError("database-missing", "conversations are kept in Postgres: set DATABASE_URL")
            yield partial(answer, kept=kept)

    return opened


def question(step: str, command: type[Command], result: type[Result], answer: Answer, description: str) -> Actor:
    return Actor(
        step=step,
        command=command,
        result=result,
        open=answering(answer),
        timeout_seconds=30,
        prefetch=16,
        remembers=False,
        announces=False,
        question=True,
        schema=conversations.SCHEMA,
        description=description,
    )


ACTORS = (
    question("conversation.list", ListConversations, Listed, list_them, "Answers with a tenant's conversations."),
    question("conversation.get", GetConversation, Conversation, get_one, "Answers with all that was said in one."),
    question("conversation.delete", DeleteConversation, ConversationDeleted, delete_one, "Forgets one."),
)
