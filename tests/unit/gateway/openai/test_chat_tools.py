"""Tools of a chat: the fields of the command, and calls in the answer and in the stream, in both forms that OpenAI's clients know."""

import json
from typing import Any

import pytest

from contracts.text import Text
from gateway.openai.chat_requests import ChatRequest
from gateway.problems import HttpProblem
from tests.unit.gateway.compat.test_chat import DONE
from tests.unit.gateway.conftest import FakeGateway, OpenFakeGateway
from tests.unit.gateway.openai.test_chat import NO_REQUEST, SERVED, USER, data_of

WEATHER = {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CLOCK = {"name": "clock"}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": CLOCK | {"strict": True}}]
NAMED = {"type": "function", "function": {"name": "clock"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
CALL = {"id": "call_9", "name": "weather", "arguments": '{"city": "Paris"}'}
CALLED = DONE | {"response": "", "tool_calls": [CALL], "finish_reason": "tool_calls", "deltas": None}
CALL_DELTAS = [
    {"sequence": 0, "delta": "", "reasoning": "Which "},
    {"sequence": 1, "delta": "", "tool_calls": [{"index": 0, "id": "call_9", "name": "weather", "arguments": '{"city'}]},
    {"sequence": 2, "delta": "", "tool_calls": [{"index": 0, "arguments": '": "Paris"}'}]},
]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tools": TOOLS}, {"tools": [WEATHER, CLOCK | {"strict": True}], "tool_choice": "auto", "parallel_tool_calls": True}),
        ({"tools": TOOLS[:1], "tool_choice": "none", "parallel_tool_calls": False},
         {"tools": [WEATHER], "tool_choice": "none", "parallel_tool_calls": False}),
        ({"tools": TOOLS[:1], "tool_choice": "required"}, {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": True}),
        ({"tools": TOOLS[1:], "tool_choice": NAMED},
         {"tools": [CLOCK | {"strict": True}], "tool_choice": "required", "tool_name": "clock", "parallel_tool_calls": True}),
        ({"tools": TOOLS, "tool_choice": ALLOWED},
         {"tools": [CLOCK | {"strict": True}], "tool_choice": "required", "parallel_tool_calls": True}),
        ({"functions": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": False}),
        ({"functions": [WEATHER], "function_call": {"name": "weather"}},
         {"tools": [WEATHER], "tool_choice": "required", "tool_name": "weather", "parallel_tool_calls": False}),
        ({"tools": [], "tool_choice": "none", "parallel_tool_calls": True}, {}),
        ({"tool_choice": "auto", "function_call": "none"}, {}),
        ({"functions": [WEATHER], "tools": [], "tool_choice": "auto"},
         {"tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": False}),
        ({"tools": TOOLS[:1], "function_call": "auto", "tool_choice": "none"},
         {"tools": [WEATHER], "tool_choice": "none", "parallel_tool_calls": True}),
    ],
)  # fmt: skip
async def test_tools_become_fields_of_the_command(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    command = await ChatRequest.model_validate({"model": "text", "messages": USER} | fields).command(NO_REQUEST, None)
    assert {name: value for name, value in command.items() if name.startswith(("tool", "parallel"))} == expected
    Text.model_validate(command)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [WEATHER], "tool_choice": "required"}, "functions"),
        ({"tools": TOOLS, "tool_choice": "required", "function_call": "none"}, "function_call"),
        ({"tools": TOOLS, "function_call": {"name": "weather"}}, "function_call"),
        ({"tools": TOOLS, "functions": [WEATHER]}, "functions"),
        ({"tool_choice": "required", "function_call": "none"}, "function_call"),
        ({"tools": TOOLS, "tool_choice": ALLOWED | {"function": {"name": "clock"}}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": NAMED | {"allowed_tools": ALLOWED["allowed_tools"]}}, "tool_choice.allowed_tools"),
    ],
)
async def test_two_choices_are_one_too_many(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(HttpProblem) as raised:
        await ChatRequest.model_validate({"model": "text", "messages": USER} | fields).command(NO_REQUEST, None)
    assert (raised.value.status, raised.value.extensions) == (400, {"param": param})


async def complete(fake: FakeGateway, **fields: Any) -> Any:
    return await fake.http.post("/v1/chat/completions", json={"model": "tiny", "messages": USER, "tools": TOOLS} | fields)


async def test_answer_has_its_calls(gateway: OpenFakeGateway) -> None:
    choice = (await complete(gateway(SERVED | {"text": CALLED}))).json()["choices"][0]
    call = {"id": "call_9", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    assert choice["finish_reason"] == "tool_calls"


async def test_answer_has_a_function_call_in_the_old_form(gateway: OpenFakeGateway) -> None:
    choice = (await complete(gateway(SERVED | {"text": CALLED}), tools=None, functions=[WEATHER])).json()["choices"][0]
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert ("tool_calls" in choice["message"], choice["finish_reason"]) == (False, "function_call")


def joined(chunks: list[Any], field: str) -> list[Any]:
    return [chunk["choices"][0]["delta"][field] for chunk in chunks if field in chunk["choices"][0]["delta"]]


async def test_stream_has_the_parts_of_calls(gateway: OpenFakeGateway) -> None:
    fake = gateway(SERVED | {"text": CALLED | {"deltas": 3}})
    fake.publisher.deltas["text"] = CALL_DELTAS
    *chunks, done = data_of((await complete(fake, stream=True)).text)
    assert joined(chunks, "tool_calls") == [
        [{"index": 0, "id": "call_9", "type": "function", "function": {"name": "weather", "arguments": '{"city'}}],
        [{"index": 0, "function": {"arguments": '": "Paris"}'}}],
    ]
    assert (joined(chunks, "reasoning_content"), joined(chunks, "role"), joined(chunks, "content")) == (["Which "], ["assistant"], [""])
    assert (chunks[-1]["choices"][0]["finish_reason"], done) == ("tool_calls", "[DONE]")


async def test_stream_in_the_old_form(gateway: OpenFakeGateway) -> None:
    fake = gateway(SERVED | {"text": CALLED | {"deltas": 3}})
    fake.publisher.deltas["text"] = CALL_DELTAS
    *chunks, _ = data_of((await complete(fake, stream=True, tools=None, functions=[WEATHER])).text)
    calls = joined(chunks, "function_call")
    assert calls[0]["name"] == "weather"
    assert json.loads("".join(call["arguments"] for call in calls)) == {"city": "Paris"}
    assert (joined(chunks, "tool_calls"), chunks[-1]["choices"][0]["finish_reason"]) == ([], "function_call")
