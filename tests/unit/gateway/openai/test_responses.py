"""Responses requests: what becomes of their fields, and which are refused by name."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest
from fastapi import Request
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from contracts.responses import CreateResponse
from gateway.openai.response_items import to_items
from gateway.openai.response_requests import ResponseBody
from tests.support.fake_broker import Replier
from tests.unit.gateway.conftest import OpenFakeGateway
from tests.unit.gateway.text.test_status import STATUS

ID = f"resp_{'0' * 32}"
NO_REQUEST = cast("Request", None)
SERVED: dict[str, Replier] = {"text.status": STATUS | {"vision": True}}
TOOL = {"type": "function", "name": "weather"}


async def command(**fields: Any) -> CreateResponse:
    body = ResponseBody.model_validate({"model": "text", "input": "hello"} | fields)
    return await body.command(NO_REQUEST, ID, "tiny", None, datetime(2026, 1, 1, tzinfo=UTC))


async def test_defaults_are_those_of_openai() -> None:
    request = (await command()).request
    assert (request.temperature, request.top_p, request.store, request.background) == (1.0, 1.0, True, False)
    assert (request.tool_choice, request.parallel_tool_calls, request.truncation) == ("auto", True, "disabled")
    assert request.to_openai()["text"] == {"format": {"type": "text"}, "verbosity": "medium"}


async def test_fields_become_the_request() -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    choice = {"type": "function", "name": "weather"}
    made = await command(text={"format": schema}, tools=[TOOL], tool_choice=choice, reasoning={"effort": "high", "summary": "auto"})
    request = made.request
    assert request.text_format.json_schema == {"type": "object"}
    assert (request.tool_name, request.effort, request.tools[0].name) == ("weather", "high", "weather")
    assert request.to_openai()["tool_choice"] == choice
    assert request.to_openai()["text"]["format"] == schema | {"description": None}


async def test_items_keep_their_ids_and_get_new_ones() -> None:
    items = await to_items(NO_REQUEST, [
        {"role": "user", "content": "a"},
        {"type": "message", "role": "assistant", "id": "msg_7", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "reasoning", "id": "rs_7", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": None},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}", "status": "completed", "namespace": None},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "sunny"}]},
        {"id": "msg_6"},
    ])  # fmt: skip
    assert [item.type for item in items] == [
        *("message", "message", "reasoning", "function_call", "function_call_output", "item_reference")
    ]
    assert (items[1].id, items[2].id, items[5].id) == ("msg_7", "rs_7", "msg_6")
    assert items[0].id.startswith("msg_")
    assert [item.to_openai()["type"] for item in items] == [item.type for item in items]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"unknown": 1}, "unknown"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools.0.name"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools.0"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "name": "other"}, "tools": [TOOL]}, "tool_choice"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": "x"}] * 1001}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input.0.type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": "x", "phase": "commentary"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input.0.content.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "ftp://x"}]}]}, "input.0.content.0.image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input.0.content.0.image_url"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input.0"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
        ({"previous_response_id": "other"}, "previous_response_id"),
        ({"background": True, "store": False}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
async def test_what_is_not_supported_is_named(changes: dict[str, Any], param: str, gateway: OpenFakeGateway) -> None:
    response = await gateway(SERVED).http.post("/v1/responses", json={"model": "text", "input": "x"} | changes)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_every_field_of_the_client_is_known() -> None:
    assert ResponseBody.model_fields.keys() == ResponseCreateParamsBase.__annotations__.keys() | {"stream"}


LONG = "x" * (1 << 20)
LONG_FIELDS: list[dict[str, Any]] = [
    {"instructions": LONG},
    {"input": LONG},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": LONG}]}]},
    {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": LONG}]}]},
    {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": LONG}]},
    {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "image_url": f"data:{LONG}"}]},
    {"tools": [TOOL | {"parameters": {LONG: {}}}]},
    {"tools": [TOOL | {"parameters": {"enum": [10**40] * 30_000}}]},
    {"tools": [TOOL | {"parameters": {"type": "input_image", "image_url": f"data:{LONG}"}}]},
    {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"description": LONG}}}},
]


@pytest.mark.parametrize("fields", LONG_FIELDS, ids=lambda fields: str(fields)[:60])
async def test_long_text_is_refused_wherever_it_stands(fields: dict[str, Any], gateway: OpenFakeGateway) -> None:
    """Nothing of it is published: a longer body is allowed for pictures only."""
    response = await gateway(SERVED).http.post("/v1/responses", json={"model": "text", "input": "x"} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (413, next(iter(fields))), response.text[:500]


def test_pictures_are_no_text() -> None:
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{LONG}"}
    output = {"type": "function_call_output", "call_id": "c", "output": [image]}
    given = [{"role": "user", "content": [image, {"type": "input_text", "text": "hello"}]}, output]
    lengths = ResponseBody.model_validate({"model": "text", "input": given}).text_lengths()
    assert 5 < sum(lengths.values()) < 300


async def test_listed_picture_is_accepted_with_its_item(gateway: OpenFakeGateway) -> None:
    """Without an item that was stored it is a picture without an address."""
    listed = {"type": "input_image", "detail": "low", "file_id": None, "image_url": None}
    (item,) = await to_items(NO_REQUEST, [{"role": "user", "id": "msg_7", "content": [listed]}])
    assert (item.content[0].type, item.content[0].detail, item.content[0].picture) == ("input_image", "low", None)
    assert item.content[0].to_openai() == listed
    parts = [[listed], [{"type": "input_text", "text": "x"}] * 1001]
    for content, param in zip(parts, ("input.0.content.0.image_url", "input.0.content"), strict=True):
        given = [{"role": "user", "content": content}]
        response = await gateway(SERVED).http.post("/v1/responses", json={"model": "text", "input": given})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


async def test_query_of_a_stream_is_checked(gateway: OpenFakeGateway) -> None:
    http = gateway().http
    for query, param in (
        ("starting_after=3", "starting_after"),
        ("include[]=x", "include"),
        ("stream=true&starting_after=x", "starting_after"),
    ):
        response = await http.get(f"/v1/responses/{ID}?{query}")
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
