"""A stand-in for the writing step where a test is about the gateway: it says the words of the message backwards, and keeps what it got.

The message decides: `fails <code>` fails for good with that code, `endless` writes until it is stopped, `gap` leaves a delta out.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError
from contracts.conversation import (
    Conversation,
    ConversationDeleted,
    ConversationLine,
    ConversationMessage,
    Conversations,
    DeleteConversation,
    GetConversation,
    ListConversations,
)
from contracts.text import GetTextStatus, ModelInfo, Text, TextDelta, TextDone, TextStatus, Timings, Usage
from contracts.wire import Command, Result, Step

KNOWN_CONVERSATION = "c-1"
FIXED_TIME = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class FakeTextActor:
    """`seen`: every command. `begun`, `stopped`: an endless answer was."""

    loading: bool = False
    has_vision: bool = True
    commands: list[Text] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def actors(self) -> tuple[Actor, ...]:
        questions = [
            ("text.status", GetTextStatus, TextStatus, self.status),
            ("conversation.list", ListConversations, Conversations, self.list_conversations),
            ("conversation.get", GetConversation, Conversation, self.get_conversation),
            ("conversation.delete", DeleteConversation, ConversationDeleted, self.delete_conversation),
        ]
        return (
            make_actor(Step.TEXT.value, Text, TextDone, self.generate),
            *(make_actor(*question, is_query=True) for question in questions),
        )

    async def generate(self, command: Text, context: Context) -> TextDone:
        self.commands.append(command)
        words = prompt_words(command)
        if words[0] == "fails":
            raise PermanentError(words[1], "it was asked to fail")
        if words[0] == "endless":
            await self.stream_forever(context)
        said = " ".join(reversed(words))
        pieces = [word + " " for word in said.split()[:-1]] + said.split()[-1:]
        if command.stream and context.send_delta:
            for index, piece in enumerate(pieces):
                await context.send_delta(TextDelta(sequence=index + (words[0] == "gap" and index > 0), delta=piece))
        return text_result(command, said, len(pieces) if command.stream else None)

    async def stream_forever(self, context: Context) -> None:
        self.started.set()
        try:
            for number in range(1_000_000):
                if context.send_delta:
                    await context.send_delta(TextDelta(sequence=number, delta="on "))
                await asyncio.sleep(0.01)
        finally:
            self.cancelled.set()

    async def status(self, command: GetTextStatus, context: Context) -> TextStatus:
        if self.loading:
            raise PermanentError("loading", "the model is loading")
        told = {"model_name": "tiny", "engine": "vllm", "engine_status": "running", "running_requests": 4, "pending_requests": 2}
        more = {
            "tokens_generated": 99,
            "max_model_len": 128,
            "vision": self.has_vision,
            "lora_adapters": ["bistro"],
            "gpu_memory_used": 24.5,
        }
        return TextStatus.model_validate(told | more | {"gpu_memory_total": 49.0, "engine_config": {"model": "tiny", "max_num_seqs": 16}})

    async def list_conversations(self, command: ListConversations, context: Context) -> Conversations:
        line = ConversationLine(
            conversation_id=KNOWN_CONVERSATION, message_count=2, last_message_time=FIXED_TIME, last_message_preview="라멘"
        )
        return Conversations(conversations=[line], total_conversations=1, total_messages=2)

    async def get_conversation(self, command: GetConversation, context: Context) -> Conversation:
        check_conversation(command.conversation_id)
        said = [
            ConversationMessage(role="user", content="무엇?", timestamp=FIXED_TIME, image_info={"width": 4}),
            ConversationMessage(role="assistant", content="라멘", timestamp=FIXED_TIME),
        ]
        return Conversation(conversation_id=KNOWN_CONVERSATION, messages=said, message_count=2)

    async def delete_conversation(self, command: DeleteConversation, context: Context) -> ConversationDeleted:
        check_conversation(command.conversation_id)
        return ConversationDeleted(conversation_id=KNOWN_CONVERSATION)


def check_conversation(conversation_id: str) -> None:
    if conversation_id != KNOWN_CONVERSATION:
        raise PermanentError("conversation-unknown", "there is none")


def prompt_words(command: Text) -> list[str]:
    if command.message is not None:
        return command.message.split()
    content = (command.messages or [])[-1].content
    return (content if isinstance(content, str) else "".join(part.text or "" for part in content)).split()


def text_result(command: Text, text: str, deltas: int | None) -> TextDone:
    timings = Timings(generation_ms=12.3, total_ms=13.4, endpoint_total_ms=13.4, tokens_generated=5, tokens_per_second=99.9)
    info = ModelInfo(
        model_name="tiny", max_tokens=min(command.max_tokens or 512, 512), temperature=command.temperature or 0.7, timings=timings
    )
    asked = command.json_only or command.json_schema is not None
    return TextDone(
        response='{"a": 1}' if asked else text,
        conversation_id=command.conversation_id or KNOWN_CONVERSATION if command.message else None,
        generation_time=0.01,
        model_info=info,
        response_json={"a": 1} if asked else None,
        response_is_json=asked,
        usage=Usage(prompt_tokens=7, completion_tokens=5, total_tokens=12),
        deltas=deltas,
    )


def make_actor(step: str, command: type[Command], result: type[Result], handle: Any, *, is_query: bool = False) -> Actor:
    @asynccontextmanager
    async def opened(tools: Resources) -> AsyncIterator[Handler]:
        yield handle

    quiet: dict[str, Any] = {"remembers": False, "announces": False, "question": True} if is_query else {}
    return Actor(step=step, command=command, result=result, open=opened, timeout_seconds=30, prefetch=16, **quiet)
