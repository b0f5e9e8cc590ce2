"""What a request of the text step may not combine, checked before any work. Each error names its field."""

from collections.abc import Iterable, Sequence

from actors.llm.json_answers import check_schema
from bus.errors import PermanentError
from contracts.text import Message, Text

MAX_ALTERNATIVES = 9_000
"""Log probabilities in one reply, so that it is no larger than a message of the broker may be: each has up to about 110 bytes."""
PROMPTS = ("message", "messages", "raw_prompt")
"""Exactly one of these fields is set."""


def check_command(command: Text, max_tokens: int) -> None:
    """Raises PermanentError("invalid-message"). `max_tokens`: the limit of each answer."""
    given = [name for name in PROMPTS if getattr(command, name) is not None]
    if len(given) != 1:
        raise invalid(f"send exactly one of message, messages and raw_prompt; {', '.join(given) or 'none'} was sent")
    if command.raw_prompt is not None:
        unused = ("system", "conversation_id", "pictures", "documents", "tools", "reasoning_effort")
        refuse_fields(command, unused, "a prompt is continued as it is")
    if command.messages is not None:
        refuse_fields(command, ("conversation_id",), "a chat is not stored: send message")
        refuse_fields(command, ("pictures", "documents"), "the parts of a message hold its pictures: send these, or message")
    if command.message is not None:
        refuse_fields(command, ("tools",), "conversations hold texts alone: send messages")
        if command.n > 1:
            raise invalid("n must be 1 beside message, because a conversation is continued by one answer: send messages")
    check_tools(command)
    check_logprobs(command, max_tokens)
    check_messages(command.messages or ())


def refuse_fields(command: Text, names: Iterable[str], reason: str) -> None:
    """A variable that the slip has of an earlier step, such as the conversation's id, was not sent with this command."""
    variables = command.slip.variables if command.slip else {}
    sent = (name for name in names if getattr(command, name) and variables.get(name) != getattr(command, name))
    if found := next(sent, None):
        prompt = next(name for name in PROMPTS if getattr(command, name) is not None)
        raise invalid(f"{found} cannot be used with {prompt}: {reason}")


def check_tools(command: Text) -> None:
    names = [tool.name for tool in command.tools]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise invalid(f"tools has two with the name {duplicate!r}")
    if command.tool_name is not None and command.tool_name not in names:
        raise invalid(f"tool_name {command.tool_name!r} is none of tools: {', '.join(names)[:500] or 'none were sent'}")
    if command.tool_choice == "required" and not names:
        raise invalid("tool_choice is required, and tools is empty")


def check_logprobs(command: Text, max_tokens: int) -> None:
    """The result holds those of the first of several answers twice."""
    if command.top_logprobs and not command.with_logprobs:
        raise invalid("top_logprobs needs with_logprobs")
    answers = command.n + (command.n > 1)
    places = answers * max_tokens * (1 + command.top_logprobs) if command.with_logprobs else 0
    if places > MAX_ALTERNATIVES:
        sizes = f"{command.n} answers of {max_tokens} tokens with {command.top_logprobs} top_logprobs"
        raise invalid(f"{sizes} are {places} log probabilities, and a reply holds {MAX_ALTERNATIVES}: lower n, max_tokens or top_logprobs")


def check_messages(messages: Sequence[Message]) -> None:
    """Each message of the role `tool` is the result of a call that stands before it."""
    calls: set[str] = set()
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if message.tool_calls and message.role != "assistant":
            raise invalid(f"{place}.tool_calls needs the role assistant, not {message.role}")
        if message.reasoning is not None and message.role != "assistant":
            raise invalid(f"{place}.reasoning needs the role assistant, not {message.role}")
        if (message.tool_call_id is not None) is not (message.role == "tool"):
            raise invalid(f"{place}.tool_call_id belongs to the role tool, which needs it; the role is {message.role}")
        if message.tool_call_id is not None and message.tool_call_id not in calls:
            raise invalid(f"{place}.tool_call_id {message.tool_call_id!r} is the id of no tool call before it")
        calls.update(call.id for call in message.tool_calls)


async def check_tool_schemas(tools: Iterable[dict[str, object]], tenant: str) -> None:
    """Raises PermanentError("schema-refused") for arguments that a grammar cannot constrain. `tools`: in OpenAI's form."""
    for tool in tools:
        function = tool["function"]
        assert isinstance(function, dict)
        try:
            await check_schema(function.get("parameters") or {"type": "object"}, tenant)
        except PermanentError as error:
            raise PermanentError(error.code, f"parameters of the tool {function['name']!r}: {error}") from None


def invalid(reason: str) -> PermanentError:
    return PermanentError("invalid-message", reason)
