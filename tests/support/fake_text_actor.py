"""A fake text step for tests of the gateway: it replies with the words of the prompt in reverse order, and records the commands.

The message decides: `fails <code>` fails for good with that code, `endless` writes until it is stopped, `gap` leaves a delta out,
`call` calls the first tool. With a reasoning effort it thinks `hm`; a word is a token with the log probability -0.5.
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
from contracts.text import (
    Alternative,
    Answer,
    GetTextStatus,
    ModelInfo,
    Text,
    TextDelta,
    TextDone,
    TextStatus,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from contracts.wire import Command, Result, Step

KNOWN_CONVERSATION = "c-1"
ARGUMENTS = '{"city": "Paris"}'
FIXED_TIME = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class FakeTextActor:
    """`commands`: all that arrived. `started` and `cancelled` are set by an endless generation."""

    loading: bool = False
    has_vision: bool = True
    commands: list[Text] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def actors(self) -> tuple[Actor, ...]:
        queries = [
            ("text.status", GetTextStatus, TextStatus, self.status),
            ("conversation.list", ListConversations, Conversations, self.list_conversations),
            ("conversation.get", GetConversation, Conversation, self.get_conversation),
            ("conversation.delete", DeleteConversation, ConversationDeleted, self.delete_conversation),
        ]
        return (
            make_actor(Step.TEXT.value, Text, TextDone, self.generate),
            *(make_actor(*query, is_query=True) for query in queries),
        )

    async def generate(self, command: Text, context: Context) -> TextDone:
        self.commands.append(command)
        words = prompt_words(command)
        if words[0] == "fails":
            raise PermanentError(words[1], "the prompt requests a failure")
        if words[0] == "endless":
            await self.stream_forever(context)
        reply = " ".join(reversed(words))
        deltas = make_deltas(command, words, reply)
        if command.stream and context.send_delta:
            for index, delta in enumerate(deltas):
                await context.send_delta(delta.model_copy(update={"sequence": index + (words[0] == "gap" and index > 0)}))
        return text_result(command, reply, len(deltas) if command.stream else None)

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
        engine = {"model_name": "tiny", "engine": "vllm", "engine_status": "running", "running_requests": 4, "pending_requests": 2}
        details = {
            "tokens_generated": 99,
            "max_model_len": 128,
            "vision": self.has_vision,
            "lora_adapters": ["bistro"],
            "gpu_memory_used": 24.5,
        }
        return TextStatus.model_validate(
            engine | details | {"gpu_memory_total": 49.0, "engine_config": {"model": "tiny", "max_num_seqs": 16}}
        )

    async def list_conversations(self, command: ListConversations, context: Context) -> Conversations:
        line = ConversationLine(
            conversation_id=KNOWN_CONVERSATION, message_count=2, last_message_time=FIXED_TIME, last_message_preview="라멘"
        )
        return Conversations(conversations=[line], total_conversations=1, total_messages=2)

    async def get_conversation(self, command: GetConversation, context: Context) -> Conversation:
        check_conversation(command.conversation_id)
        messages = [
            ConversationMessage(role="user", content="무엇?", timestamp=FIXED_TIME, image_info={"width": 4}),
            ConversationMessage(role="assistant", content="라멘", timestamp=FIXED_TIME),
        ]
        return Conversation(conversation_id=KNOWN_CONVERSATION, messages=messages, message_count=2)

    async def delete_conversation(self, command: DeleteConversation, context: Context) -> ConversationDeleted:
        check_conversation(command.conversation_id)
        return ConversationDeleted(conversation_id=KNOWN_CONVERSATION)


def check_conversation(conversation_id: str) -> None:
    if conversation_id != KNOWN_CONVERSATION:
        raise PermanentError("conversation-unknown", "no such conversation")


def prompt_words(command: Text) -> list[str]:
    if command.message is not None:
        return command.message.split()
    if command.raw_prompt is not None:
        return command.raw_prompt.split()
    content = (command.messages or [])[-1].content
    return (content if isinstance(content, str) else "".join(part.text or "" for part in content)).split()


def called_tool(command: Text, words: list[str]) -> str | None:
    """The name of the tool that the answer calls."""
    if command.tools and (command.tool_choice == "required" or (words[0] == "call" and command.tool_choice == "auto")):
        return command.tool_name or command.tools[0].name
    return None


def make_deltas(command: Text, words: list[str], reply: str) -> list[TextDelta]:
    """Of all answers; each call is sent in two parts."""
    thoughts = [TextDelta(sequence=0, delta="", reasoning="hm")] if command.reasoning_effort else []
    if name := called_tool(command, words):
        first, second = (
            ToolCallDelta(index=0, id="call_1", name=name, arguments=ARGUMENTS[:5]),
            ToolCallDelta(index=0, arguments=ARGUMENTS[5:]),
        )
        deltas = [*thoughts, *(TextDelta(sequence=0, delta="", tool_calls=[part]) for part in (first, second))]
    else:
        deltas = [*thoughts, *(TextDelta(sequence=0, delta=word, logprobs=word_logprobs(command, [word]) or []) for word in pieces(reply))]
    return [delta.model_copy(update={"choice": choice}) for delta in deltas for choice in range(command.n)]


def pieces(text: str) -> list[str]:
    """The words, each with the blank after it."""
    return [word + " " for word in text.split()[:-1]] + text.split()[-1:]


def word_logprobs(command: Text, words: list[str]) -> list[TokenLogprob] | None:
    if not command.with_logprobs:
        return None
    top = [Alternative(text=word, logprob=-0.5) for word in ("x",) * command.top_logprobs]
    return [TokenLogprob(text=word, logprob=-0.5, top=top) for word in words]


def make_answer(command: Text, text: str) -> Answer:
    reasoning = "hm" if command.reasoning_effort else None
    if name := called_tool(command, prompt_words(command)):
        call = ToolCall(id="call_1", name=name, arguments=ARGUMENTS)
        return Answer(response="", tool_calls=[call], reasoning=reasoning, finish_reason="tool_calls")
    return Answer(response=text, reasoning=reasoning, logprobs=word_logprobs(command, pieces(text)))


def text_result(command: Text, text: str, deltas: int | None) -> TextDone:
    timings = Timings(generation_ms=12.3, total_ms=13.4, endpoint_total_ms=13.4, tokens_generated=5, tokens_per_second=99.9)
    info = ModelInfo(
        model_name="tiny", max_tokens=min(command.max_tokens or 512, 512), temperature=command.temperature or 0.7, timings=timings
    )
    as_json = command.json_only or command.json_schema is not None
    answer = make_answer(command, '{"a": 1}' if as_json else text)
    return TextDone(
        **dict(answer),
        answers=[answer] * command.n if command.n > 1 else [],
        conversation_id=command.conversation_id or KNOWN_CONVERSATION if command.message else None,
        generation_time=0.01,
        model_info=info,
        response_json={"a": 1} if as_json else None,
        response_is_json=as_json,
        usage=Usage(prompt_tokens=7, completion_tokens=5, total_tokens=12, cached_tokens=3, reasoning_tokens=1),
        deltas=deltas,
    )


def make_actor(step: str, command: type[Command], result: type[Result], handle: Any, *, is_query: bool = False) -> Actor:
    @asynccontextmanager
    async def open_handler(resources: Resources) -> AsyncIterator[Handler]:
        yield handle

    query_options: dict[str, Any] = {"deduplicate": False, "emit_events": False, "is_query": True} if is_query else {}
    return Actor(step=step, command=command, result=result, open=open_handler, timeout_seconds=30, prefetch=16, **query_options)
