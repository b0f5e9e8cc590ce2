"""What a text command may not combine is refused before any work, with the name of the field."""

from typing import Any

import pytest

from actors.llm.request_checks import check_command, check_tool_schemas
from bus.errors import PermanentError
from contracts.text import Text

TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}]}
CALL = {"id": "call_1", "name": "weather", "arguments": "{}"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "exactly one"),
    "both": (CHAT | {"message": "?"}, "message, messages"),
    "chat and prompt": (CHAT | {"raw_prompt": "?"}, "messages, raw_prompt"),
    "prompt with system": ({"raw_prompt": "?", "system": "be kind"}, "system"),
    "prompt with tools": ({"raw_prompt": "?", "tools": [TOOL]}, "tools"),
    "conversation with tools": ({"message": "?", "tools": [TOOL]}, "tools"),
    "conversation with n": ({"message": "?", "n": 2}, "n must be 1"),
    "two tools of one name": (CHAT | {"tools": [TOOL, TOOL]}, "'weather'"),
    "unknown tool": (CHAT | {"tools": [TOOL], "tool_name": "other"}, "tool_name 'other'"),
    "tool without tools": (CHAT | {"tool_name": "weather"}, "tool_name"),
    "required without tools": (CHAT | {"tool_choice": "required"}, "tool_choice"),
    "top_logprobs alone": (CHAT | {"top_logprobs": 2}, "top_logprobs"),
    "too many log probabilities": (CHAT | {"with_logprobs": True, "top_logprobs": 20, "n": 16}, "top_logprobs"),
    "too many, with those of the first answer": (CHAT | {"with_logprobs": True, "top_logprobs": 7, "n": 2}, "top_logprobs"),
    "chat with a conversation": (CHAT | {"conversation_id": "1"}, "conversation_id cannot be used with messages"),
    "chat with pictures beside it": (CHAT | {"pictures": [{"data": "AA=="}]}, "pictures cannot be used with messages"),
    "chat with documents": (CHAT | {"documents": [{"data": "AA=="}]}, "documents cannot be used with messages"),
    "prompt with an effort": ({"raw_prompt": "?", "reasoning_effort": "low"}, "reasoning_effort cannot be used with raw_prompt"),
    "another conversation than that of the slip": (
        CHAT | {"conversation_id": "2", "slip": {"variables": {"conversation_id": "1"}}},
        "conversation_id",
    ),
    "calls of a user": ({"messages": [{"role": "user", "tool_calls": [CALL]}]}, r"messages\[0\].tool_calls"),
    "reasoning of a user": ({"messages": [{"role": "user", "reasoning": "hm"}]}, r"messages\[0\].reasoning"),
    "result without a call's id": ({"messages": [{"role": "tool", "content": "1"}]}, "tool_call_id"),
    "call's id of a user": ({"messages": [{"role": "user", "tool_call_id": "call_1"}]}, "tool_call_id"),
    "result of no call": ({"messages": [{"role": "tool", "tool_call_id": "call_1"}]}, "'call_1'"),
}
TAKEN: dict[str, dict[str, Any]] = {
    "chat": CHAT | {"n": 16, "with_logprobs": True},
    "prompt": {"raw_prompt": "", "n": 2, "with_logprobs": True, "top_logprobs": 4},
    "chat after a conversation": CHAT | {"conversation_id": "1", "slip": {"variables": {"conversation_id": "1"}}},
    "tools": CHAT | {"tools": [TOOL], "tool_name": "weather", "parallel_tool_calls": False},
    "result of a call": {"messages": [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1"}]},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_command_is_refused_with_the_name_of_its_field(kind: str) -> None:
    fields, named = REFUSED[kind]
    with pytest.raises(PermanentError, match=named) as raised:
        check_command(Text.model_validate(fields), 512)
    assert raised.value.code == "invalid-message"


@pytest.mark.parametrize("kind", TAKEN)
def test_command_is_taken(kind: str) -> None:
    """Nothing is raised."""
    check_command(Text.model_validate(TAKEN[kind]), 512)


async def test_arguments_that_no_grammar_constrains_name_their_tool() -> None:
    function = {"name": "weather", "parameters": {"type": "object", "minProperties": 1}}
    await check_tool_schemas([{"type": "function", "function": {"name": "clock"}}], "")
    with pytest.raises(PermanentError, match=r"'weather'.*minProperties") as raised:
        await check_tool_schemas([{"type": "function", "function": function}], "")
    assert raised.value.code == "schema-refused"
