"""A conversation as it is kept, and how to ask for it. A tenant sees its own conversations alone."""

from datetime import datetime
from typing import Any

from pydantic import Field

from contracts.text import Role
from contracts.wire import Command, Result
from contracts.wire_model import WireModel


class ListConversations(Command):
    """The one spoken in last comes first."""

    limit: int = Field(100, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=1_000_000)


class GetConversation(Command):
    """One that is unknown is answered with the fault `conversation-unknown`."""

    conversation_id: str = Field(max_length=255)


class DeleteConversation(Command):
    """One that is unknown is answered with the fault `conversation-unknown`."""

    conversation_id: str = Field(max_length=255)


class ConversationMessage(WireModel):
    """One message of a conversation. Bytes are not kept: `image_info` and `file_info` say what was shown."""

    role: Role
    content: str
    timestamp: datetime
    image_info: dict[str, Any] | None = None
    file_info: dict[str, Any] | None = None


class ConversationLine(WireModel):
    conversation_id: str
    message_count: int
    last_message_time: datetime
    last_message_preview: str = Field(description="50 characters, then `...` when there are more.")


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
