"""The text command of a response: the messages of its conversation, and what it was requested with. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from actors.engines.language.requests import PromptTooLong
from bus.errors import PermanentError
from contracts.responses import Item, ItemPart, ResponseRequest
from contracts.text import Message, Part, Text, ToolCall

SMALLEST_TOP_P = 1e-6
"""OpenAI takes 0, which means the likeliest token alone."""
SURPLUS_SHARE = 0.8
"""Of the characters that are too many by estimation: so much is dropped before the tokens are counted again."""


@dataclass
class AssistantTurn:
    """The items of the assistant that make up one message."""

    reasoning: list[str] = field(default_factory=list)
    text: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def has_answer(self) -> bool:
        return self.text is not None or bool(self.calls)

    def to_message(self) -> Message:
        reasoning = "\n".join(self.reasoning) or None
        return Message(role="assistant", content=self.text or "", tool_calls=self.calls, reasoning=reasoning)


@contextmanager
def name_invalid_input() -> Iterator[None]:
    """Raises PermanentError("invalid-message") for what the text step does not take, such as too many calls in one turn."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"messages made of the input cannot be sent to the model: {place} of a {error.title.lower()}: {first['msg']}"
        raise PermanentError("invalid-message", reason) from None


@name_invalid_input()
def to_messages(items: Iterable[Item]) -> list[Message]:
    """The messages of a chat. Reasoning, text and calls that follow each other are one message of the assistant.

    Raises PermanentError("invalid-message").
    """
    messages: list[Message] = []
    turn: AssistantTurn | None = None
    for item in items:
        if item.type in ("reasoning", "function_call") or (item.type == "message" and item.role == "assistant"):
            turn, ended = add_to_turn(turn or AssistantTurn(), item)
            messages += [ended] if ended else []
            continue
        if turn:
            messages.append(turn.to_message())
            turn = None
        messages.append(to_message(item))
    return [*messages, turn.to_message()] if turn else messages


def add_to_turn(turn: AssistantTurn, item: Item) -> tuple[AssistantTurn, Message | None]:
    """The turn that the item belongs to; and the message of the turn before, when the item begins another one."""
    ended = turn.to_message() if turn.has_answer and item.type != "function_call" else None
    turn = AssistantTurn() if ended else turn
    match item.type:
        case "reasoning":
            turn.reasoning += item.thoughts or item.summary
        case "function_call":
            turn.calls.append(ToolCall(id=item.call_id, name=item.name, arguments=item.arguments))
        case _:
            turn.text = "".join(part.text for part in item.content)
    return turn, ended


def to_message(item: Item) -> Message:
    if item.type == "function_call_output":
        output = item.output if isinstance(item.output, str) else to_content(item.output)
        return Message(role="tool", content=output, tool_call_id=item.call_id)
    return Message(role="user" if item.role == "user" else "system", content=to_content(item.content))


def to_content(parts: Sequence[ItemPart]) -> str | list[Part]:
    if all(part.picture is None for part in parts):
        return "\n".join(part.text for part in parts)
    return [Part(picture=part.picture) if part.picture else Part(text=part.text) for part in parts]


def check_calls(items: Iterable[Item]) -> None:
    """Raises PermanentError("call-unknown") for the output of a function call that stands nowhere before it."""
    calls: set[str] = set()
    for item in items:
        if item.type == "function_call_output" and item.call_id not in calls:
            raise PermanentError("call-unknown", f"No tool call found for function call output with call_id {item.call_id!r}.")
        if item.type == "function_call":
            calls.add(item.call_id)


@name_invalid_input()
def to_command(response_id: str, request: ResponseRequest, messages: list[Message], lora_adapter: str | None) -> Text:
    """The seed is that of the response's id, so that a run that begins again writes the same text.

    Raises PermanentError("invalid-message").
    """
    instructions = [Message(role="system", content=request.instructions)] if request.instructions else []
    fields: dict[str, Any] = request.model_dump(include={"temperature", "top_logprobs", "tool_choice", "tool_name"})
    return Text(
        messages=[*instructions, *messages],
        max_tokens=request.max_output_tokens,
        top_p=max(request.top_p, SMALLEST_TOP_P),
        repetition_penalty=1.0,
        seed=UUID(response_id.removeprefix("resp_")).int >> 65,
        lora_adapter=lora_adapter,
        tools=request.tools,
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=request.effort,
        json_only=request.text_format.type == "json_object",
        json_schema=request.text_format.json_schema,
        with_logprobs=request.logprobs,
        stream=True,
        **fields,
    )


def drop_oldest(messages: list[Message], error: PromptTooLong, at_least: int = 1) -> list[Message]:
    """The messages without as many of the oldest turns as are too long. Raises `error` when only the last turn is left.

    A turn begins with a message of the user. Messages of the system stay; a result goes with its call.
    `at_least`: so many turns, if there are as many: not every server says how many tokens are too many.
    """
    starts = [index for index, message in enumerate(messages) if message.role == "user"][1:]
    surplus = sum(map(content_length, messages)) * (1 - error.limit / error.tokens if error.tokens > error.limit > 0 else 0)
    for start in starts[at_least - 1 :] or starts[-1:]:
        dropped = [message for message in messages[:start] if message.role != "system"]
        if sum(map(content_length, dropped)) >= surplus * SURPLUS_SHARE or start == starts[-1]:
            return without_lost_results([message for index, message in enumerate(messages) if index >= start or message.role == "system"])
    raise error


def without_lost_results(messages: Iterable[Message]) -> list[Message]:
    """Without those of the role `tool` whose call is not before them."""
    kept: list[Message] = []
    calls: set[str] = set()
    for message in messages:
        calls.update(call.id for call in message.tool_calls)
        kept += [message] if message.role != "tool" or message.tool_call_id in calls else []
    return kept


def content_length(message: Message) -> int:
    """In characters; pictures do not count."""
    texts = [message.content] if isinstance(message.content, str) else [part.text or "" for part in message.content]
    return sum(map(len, [*texts, message.reasoning or "", *(call.arguments for call in message.tool_calls)]))
