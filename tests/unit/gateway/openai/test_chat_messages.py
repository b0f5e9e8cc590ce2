"""The messages of a chat request: the forms in which clients keep their histories, and the fields that a role or a type does not have."""

from typing import Any

import pytest

from contracts.text import Text
from gateway.openai.chat_requests import ChatRequest
from gateway.problems import HttpProblem
from tests.unit.gateway.conftest import OpenFakeGateway
from tests.unit.gateway.openai.test_chat import NO_REQUEST, SERVED, USER

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PARSED_CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"a": 1}}}
COMMAND_CALL = {"id": "a", "name": "f", "arguments": "{}"}
PNG_URL = "https://x/y.png"


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def assistant(content: Any = None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | fields


async def command_of(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    command = await ChatRequest.model_validate({"model": "text", "messages": list(messages)} | fields).command(NO_REQUEST, None)
    Text.model_validate(command)
    return command


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (assistant(tool_calls=[PARSED_CALL]), {"content": "", "tool_calls": [COMMAND_CALL]}),
        (user({"type": "text", "text": "x", "id": "lc_1", "index": 0, "extras": {}}), {"content": [{"text": "x"}]}),
        (assistant([{"type": "reasoning", "reasoning": "hm", "id": "r"}, {"type": "text", "text": "x"}]),
         {"content": [{"text": "x"}], "reasoning": "hm"}),
        (assistant([{"type": "thinking", "thinking": "a", "text": "b", "signature": "s"}], images=[]),
         {"content": "", "reasoning": "a\nb"}),
        (assistant("no", refusal="I refuse"), {"content": "no\nI refuse"}),
        (assistant(refusal="I refuse"), {"content": "I refuse"}),
        (assistant([{"type": "text", "text": "no"}], refusal="I refuse"), {"content": [{"text": "no"}, {"text": "I refuse"}]}),
        ({"role": "user", "content": "x", "tool_calls": [], "refusal": "", "tool_call_id": None}, {"content": "x"}),
        (user({"type": "text", "text": "x", "image_url": None, "refusal": ""}), {"content": [{"text": "x"}]}),
    ],
)  # fmt: skip
async def test_message_becomes_one_of_the_command(message: dict[str, Any], expected: dict[str, Any]) -> None:
    command = await command_of(message)
    assert command["messages"] == [{"role": message["role"]} | expected]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "tool_calls"),
        ({"role": "system", "content": "x", "function_call": {"name": "f", "arguments": "{}"}}, "function_call"),
        ({"role": "user", "content": "x", "tool_call_id": "a"}, "tool_call_id"),
        (assistant("x", tool_call_id="a"), "tool_call_id"),
        ({"role": "developer", "content": "x", "reasoning_content": "hm"}, "reasoning_content"),
        ({"role": "tool", "content": "x", "tool_call_id": "a", "reasoning": "hm"}, "reasoning"),
        ({"role": "user", "content": "x", "refusal": "I refuse"}, "refusal"),
        (assistant("x", images=[{"url": PNG_URL}]), "images"),
        (user({"type": "text", "text": "x", "image_url": {"url": PNG_URL}}), "content.0.image_url"),
        (user({"type": "image_url", "image_url": {"url": PNG_URL}, "text": "x"}), "content.0.text"),
        (user({"type": "text", "text": "x", "refusal": "I refuse"}), "content.0.refusal"),
        (assistant([{"type": "refusal", "refusal": "x", "thinking": "hm"}]), "content.0.thinking"),
        (user({"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}), "content.0.type"),
        (user({"type": "image_url", "image_url": {"url": "https://x/" + "y" * 2039}}), "content.0.image_url.url"),
    ],
)
async def test_what_a_role_or_a_type_lacks_is_named(gateway: OpenFakeGateway, message: dict[str, Any], param: str) -> None:
    fake = gateway(SERVED)
    response = await fake.http.post("/v1/chat/completions", json={"model": "tiny", "messages": [message]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, f"messages.0.{param}"), response.text
    assert fake.publisher.commands("text") == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": "x" * 600}, "stop"),
        ({"messages": [assistant(tool_calls=[CALL | {"id": f"{number:0250}"} for number in range(3)])]}, "messages"),
        ({"messages": [user({"type": "image_url", "image_url": {"url": PNG_URL + "?" + "y" * 600}})]}, "messages"),
    ],
)
def test_every_text_of_a_request_counts(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(HttpProblem) as raised:
        ChatRequest.model_validate({"model": "text", "messages": USER} | fields).check_text_length(500)
    assert (raised.value.status, raised.value.extensions) == (413, {"param": param})


def test_pictures_in_a_request_do_not_count() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 600}}
    ChatRequest.model_validate({"model": "text", "messages": [user(picture)]}).check_text_length(500)
