"""Stored conversations and the queries for them. A tenant sees only its own conversations."""

from datetime import datetime
from typing import Any

from pydantic import Field

from contracts.text import Role
from contracts.wire import Command, Result
from contracts.wire_model import WireModel


class ListConversations(Command):
    """List conversations, the one with the latest message first."""

    limit: int = Field(100, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=1_000_000)


class GetConversation(Command):
    """Get one conversation. The reply for an unknown id is the fault `conversation-unknown`."""

    conversation_id: str = Field(max_length=255)


class DeleteConversation(Command):
    """Delete one conversation. The reply for an unknown id is the fault `conversation-unknown`."""

    conversation_id: str = Field(max_length=255)


class ConversationMessage(WireModel):
    """One message of a conversation. Attached bytes are not stored: `image_info` and `file_info` describe them."""

    role: Role
    content: str
    timestamp: datetime
    image_info: dict[str, Any] | None = None
    file_info: dict[str, Any] | None = None


class ConversationLine(WireModel):
    """One entry of the list of conversations."""

    conversation_id: str
    message_count: int
    last_message_time: datetime
    last_message_preview: str = Field(description="The first 50 characters, and `...` when there are more.")


class Conversations(Result):
    conversations: list[ConversationLine]
    total_conversations: int
    total_messages: int


class Conversation(Result):
    conversation_id: str
    messages: list[ConversationMessage]
    message_count: int


class ConversationDeleted(Result):
    conversation_id: str
