"""What a request of the text step may not combine, checked before any work. Each error names its field."""

from collections.abc import Iterable, Sequence

from actors.llm.json_answers import check_schema
from bus.errors import PermanentError
from contracts.text import Message, Text

MAX_ALTERNATIVES = 12_000
"""Log probabilities in one reply, so that it is no larger than a message of the broker may be: each has about 70 bytes."""


def check_command(command: Text, max_tokens: int) -> None:
    """Raises PermanentError("invalid-message"). `max_tokens`: the limit of each answer."""
    given = [name for name in ("message", "messages", "raw_prompt") if getattr(command, name) is not None]
    if len(given) != 1:
        raise invalid(f"send exactly one of message, messages and raw_prompt; {', '.join(given) or 'none'} was sent")
    if command.raw_prompt is not None:
        refuse_fields(command, ("system", "conversation_id", "pictures", "documents", "tools"), "a prompt is continued as it is")
    if command.message is not None:
        refuse_fields(command, ("tools",), "conversations hold texts alone: send messages")
        if command.n > 1:
            raise invalid("n must be 1 beside message, because a conversation is continued by one answer: send messages")
    check_tools(command)
    check_logprobs(command, max_tokens)
    check_messages(command.messages or ())


def refuse_fields(command: Text, names: Iterable[str], reason: str) -> None:
    if found := next((name for name in names if getattr(command, name)), None):
        raise invalid(f"{found} cannot be used with {'raw_prompt' if command.raw_prompt is not None else 'message'}: {reason}")


def check_tools(command: Text) -> None:
    names = [tool.name for tool in command.tools]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise invalid(f"tools has two with the name {duplicate!r}")
    if command.tool_name is not None and command.tool_name not in names:
        raise invalid(f"tool_name {command.tool_name!r} is none of tools: {', '.join(names)[:500] or 'none were sent'}")
    if command.tool_choice == "required" and not names:
        raise invalid("tool_choice is required, and tools is empty")


def check_logprobs(command: Text, max_tokens: int) -> None:
    if command.top_logprobs and not command.logprobs:
        raise invalid("top_logprobs needs logprobs")
    places = command.n * max_tokens * (1 + command.top_logprobs) if command.logprobs else 0
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
