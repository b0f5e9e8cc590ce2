"""Chat completions: the command built from a request, the answer and the stream built from its result."""

import json
from typing import Any, cast

import pytest
from fastapi import Request

from contracts.fault import Fault
from contracts.text import Text
from gateway.openai.chat_requests import ChatRequest
from gateway.problems import HttpProblem
from tests.support.fake_broker import Replier
from tests.unit.gateway.compat.test_chat import DELTAS, DONE
from tests.unit.gateway.conftest import OpenFakeGateway
from tests.unit.gateway.text.test_status import STATUS

USER = [{"role": "user", "content": "hello"}]
DEFAULTS = {"messages": USER, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "stop": []}
NO_REQUEST = cast("Request", None)
SERVED: dict[str, Replier] = {"text.status": STATUS | {"lora_adapters": ["bistro"]}}
USAGE = DONE["usage"] | {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}}
FULL = Fault(code="prompt-too-long", message="600 tokens", step="text")


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {}),
        ({"max_tokens": 5, "max_completion_tokens": 7, "seed": 3}, {"max_tokens": 7, "seed": 3}),
        ({"temperature": 0, "top_p": 0.5, "presence_penalty": 1}, {"temperature": 0.0, "top_p": 0.5, "presence_penalty": 1.0}),
        ({"stop": "end"}, {"stop": ["end"]}),
        ({"stop": ["a", "", "b"]}, {"stop": ["a", "b"]}),
        ({"response_format": {"type": "json_object"}}, {"json_only": True}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}}, {"json_schema": {"type": "object"}}),
        ({"messages": [{"role": "developer", "content": "x"}]}, {"messages": [{"role": "system", "content": "x"}]}),
        ({"unknown": None, "user": "me", "metadata": {"a": "b"}, "store": False}, {}),
        ({"n": 3, "reasoning_effort": "low"}, {"n": 3, "reasoning_effort": "low"}),
        ({"reasoning_effort": "max", "best_of": 1}, {"reasoning_effort": "max"}),
        ({"stream_options": {"include_usage": True, "include_obfuscation": False}, "n": 2, "best_of": 2}, {"n": 2}),
        ({"logprobs": True, "top_logprobs": 2}, {"with_logprobs": True, "top_logprobs": 2}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
    ],
)
async def test_request_becomes_command(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    command = await ChatRequest.model_validate({"model": "text", "messages": USER} | fields).command(NO_REQUEST, None)
    assert command == DEFAULTS | changes
    Text.model_validate(command)


SCHEMA = {"schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "json_object", "json_schema": SCHEMA}, "json_schema"),
        ({"type": "text", "json_schema": SCHEMA}, "json_schema"),
        ({"type": "text"} | SCHEMA, "schema"),
        ({"type": "json_schema", "json_schema": SCHEMA} | SCHEMA, "schema"),
    ],
)
async def test_format_has_the_schema_of_its_type_alone(response_format: dict[str, Any], param: str) -> None:
    body = ChatRequest.model_validate({"model": "text", "messages": USER, "response_format": response_format})
    with pytest.raises(HttpProblem) as raised:
        await body.command(NO_REQUEST, None)
    assert (raised.value.status, raised.value.extensions) == (400, {"param": f"response_format.{param}"})


def image(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]}]


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"messages": []}, 400, "invalid_request", "messages"),
        ({"n": 17}, 400, "invalid_request", "n"),
        ({"tools": [{}]}, 400, "invalid_request", "tools.0.type"),
        ({"top_logprobs": 1}, 400, "invalid_request", "top_logprobs"),
        ({"n": 2, "best_of": 3}, 400, "invalid_request", "best_of"),
        ({"stream_options": {"include_obfuscation": True}}, 400, "invalid_request", "stream_options.include_obfuscation"),
        ({"temprature": 1}, 400, "invalid_request", "temprature"),
        ({"model": "gpt-9"}, 404, "model_not_found", "model"),
        ({"messages": image("http://x/y.png")}, 400, "invalid_image_url", "messages.0.content.1.image_url.url"),
        ({"messages": image("data:image/png;base64,eA==")}, 400, "image_unreadable", "messages.0.content.1.image_url.url"),
        ({"messages": image("data:image/png;base64,%")}, 400, "not_base64", None),
    ],
)
async def test_rejected_request_publishes_no_command(
    gateway: OpenFakeGateway, changes: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    fake_gateway = gateway(SERVED)
    response = await fake_gateway.http.post("/v1/chat/completions", json={"model": "tiny", "messages": USER} | changes)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert fake_gateway.publisher.commands("text") == []


async def test_image_url_is_passed_on(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway(SERVED | {"text": DONE | {"deltas": None}})
    await fake_gateway.http.post("/v1/chat/completions", json={"model": "tiny", "messages": image("https://x/y.png")})
    content = fake_gateway.publisher.commands("text")[0]["messages"][0]["content"]
    assert content == [{"text": "x"}, {"picture": {"url": "https://x/y.png"}}]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("url", ["https://x/y.png", "data:image/png;base64,iVBORw0KGgo="])
async def test_image_for_a_model_without_vision_is_501(gateway: OpenFakeGateway, url: str, stream: bool) -> None:
    """The header keeps the official client from repeating it."""
    fake_gateway = gateway({"text.status": STATUS | {"vision": False}, "text": DONE})
    body = {"model": "tiny", "messages": [*USER, *image(url)], "stream": stream}
    response = await fake_gateway.http.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, response.headers["x-should-retry"]) == (501, "false")
    assert (error["code"], error["param"]) == ("vision_unsupported", "messages.1.content.1")
    assert fake_gateway.publisher.commands("text") == []


async def test_schema_is_read_under_its_documented_name_only(gateway: OpenFakeGateway) -> None:
    schema = {"type": "object"}
    for name, status in (("schema", 200), ("form", 400), ("json_schema", 400)):
        fake_gateway = gateway(SERVED | {"text": DONE | {"deltas": None}})
        response_format = {"type": "json_schema", "json_schema": {"name": "a", name: schema}}
        body = {"model": "tiny", "messages": USER, "response_format": response_format}
        assert (await fake_gateway.http.post("/v1/chat/completions", json=body)).status_code == status
        assert [command["json_schema"] for command in fake_gateway.publisher.commands("text")] == [schema] * (status == 200)


@pytest.mark.parametrize(("model", "lora", "answered"), [("text", None, "tiny"), ("tiny", None, "tiny"), ("bistro", "bistro", "bistro")])
async def test_completion_names_its_model(gateway: OpenFakeGateway, model: str, lora: str | None, answered: str) -> None:
    fake_gateway = gateway(SERVED | {"text": DONE | {"deltas": None}})
    response = (await fake_gateway.http.post("/v1/chat/completions", json={"model": model, "messages": USER})).json()
    assert fake_gateway.publisher.commands("text")[0].get("lora_adapter") == lora
    assert (response["model"], response["choices"][0]["message"]["content"], response["usage"]) == (answered, "one two", USAGE)


def data_of(text: str) -> list[Any]:
    lines = [block.removeprefix("data: ") for block in text.strip().split("\n\n")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.mark.parametrize("include_usage", [True, False])
async def test_stream_ends_with_usage_and_done(gateway: OpenFakeGateway, include_usage: bool) -> None:
    fake_gateway = gateway(SERVED | {"text": DONE})
    fake_gateway.publisher.deltas["text"] = DELTAS
    body = {"model": "tiny", "messages": USER, "stream": True, "stream_options": {"include_usage": include_usage}}
    *chunks, done = data_of((await fake_gateway.http.post("/v1/chat/completions", json=body)).text)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks if chunk["choices"]] == ["", "one ", "two", None]
    assert [chunk["usage"] for chunk in chunks if "usage" in chunk] == ([USAGE] if include_usage else [])
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize(("deltas", "status"), [([], 400), (DELTAS, 200)])
async def test_failed_stream_has_no_done(gateway: OpenFakeGateway, deltas: list[dict[str, Any]], status: int) -> None:
    fake_gateway = gateway(SERVED | {"text": FULL})
    fake_gateway.publisher.deltas["text"] = deltas
    response = await fake_gateway.http.post("/v1/chat/completions", json={"model": "tiny", "messages": USER, "stream": True})
    assert (response.status_code, "[DONE]" in response.text, "context_length_exceeded" in response.text) == (status, False, True)


async def test_missing_reply_is_503(gateway: OpenFakeGateway) -> None:
    response = await gateway().http.post(
        "/v1/chat/completions", json={"model": "any", "messages": USER}, headers={"X-Request-Timeout": "0.01"}
    )
    assert (response.status_code, response.json()["error"]["code"], response.headers["retry-after"]) == (503, "model_away", "5")
