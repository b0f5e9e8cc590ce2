"""Answers of an OpenAI-compatible server: texts, context-length errors, malformed ones, and the metrics page."""

import json
from typing import Any

import httpx
import pytest

from actors.engines.language.requests import GenerationRequest
from actors.engines.remote.openai_text import (
    CONTEXT_LENGTH_PATTERN,
    PROMPT_LENGTH_PATTERN,
    OpenAiTextEngine,
    parse_number,
)
from actors.engines.remote.request_bodies import build_request_body
from actors.engines.remote.server_metrics import parse_cache_config, parse_metrics
from bus.errors import PermanentError, TemporaryError

VLLM = "This model's maximum context length is 512 tokens. However, your prompt contains at least 493 input tokens, which exceeds"
VLLM_WITH_OUTPUT = (
    "This model's maximum context length is 2,048 tokens. However, 512 output tokens are wanted and the prompt contains 1900 input tokens"
)
OPENAI = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."


@pytest.mark.parametrize(("message", "limit", "prompt"), [(VLLM, 512, 493), (VLLM_WITH_OUTPUT, 2048, 1900), (OPENAI, 8192, 9000)])
def test_context_limits_are_parsed_from_error(message: str, limit: int, prompt: int) -> None:
    match = CONTEXT_LENGTH_PATTERN.search(message)
    assert match
    assert (parse_number(match), parse_number(PROMPT_LENGTH_PATTERN.search(message, match.end()))) == (limit, prompt)


def test_metric_series_of_one_name_are_summed() -> None:
    page = '# HELP x y\nvllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\nbroken nan%\n'
    assert parse_metrics(page)["vllm:num_requests_running"] == 5.0


def test_cache_settings_are_read_from_the_metrics_of_a_vllm() -> None:
    labels = 'block_size="16",cache_dtype="auto",gpu_memory_utilization="0.9",num_gpu_blocks="None",sliding_window="None"'
    page = f"# HELP vllm:cache_config_info x\nvllm:cache_config_info{{{labels}}} 1.0\n"
    assert parse_cache_config(page) == {"block_size": 16, "gpu_memory_utilization": 0.9, "cache_dtype": "auto"}
    assert parse_cache_config("up 1\n") == {}


def completion(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}})


async def generate(reply: httpx.Response | httpx.HTTPError, content: str = "x", **options: Any) -> str:
    """The text that the engine returns when the server answers so."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "tiny"}]})
        if isinstance(reply, httpx.HTTPError):
            raise reply
        return reply

    async with httpx.AsyncClient(base_url="http://user:secret@server/v1/", transport=httpx.MockTransport(answer)) as http:
        request = GenerationRequest([{"role": "user", "content": content}], 50, 0, 1, **options)
        return "".join([chunk.text async for chunk in OpenAiTextEngine(http, None, 0.1).generate(request, None)])


async def test_stop_sequence_cuts_a_text_and_no_json() -> None:
    text = '{"a": 1, "b": 2}'
    assert await generate(completion(text), stop=(",",)) == '{"a": 1'
    assert await generate(completion(text), stop=(",",), schema={"type": "object"}) == text


TOOLS = ({"type": "function", "function": {"name": "weather"}},)


@pytest.mark.parametrize(
    ("options", "is_sent"),
    [
        ({}, True),
        ({"tools": TOOLS}, True),
        ({"tools": TOOLS, "tool_choice": "required"}, False),
        ({"tools": TOOLS, "tool_name": "weather"}, False),
        ({"schema": {"type": "object"}}, False),
    ],
)
async def test_stop_sequence_that_would_cut_a_required_answer_is_left_out_and_reported(options: dict[str, Any], *, is_sent: bool) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "tiny"}]})
        bodies.append(json.loads(request.content))
        return completion("{}")

    async with httpx.AsyncClient(base_url="http://server/v1/", transport=httpx.MockTransport(answer)) as http:
        request = GenerationRequest([{"role": "user", "content": "x"}], 50, 0, 1, stop=("{",), **options)
        chunks = [chunk async for chunk in OpenAiTextEngine(http, None, 0.1).generate(request, None)]
    assert (bodies[0].get("stop"), chunks[-1].left_out, "".join(chunk.text for chunk in chunks)) == (
        (["{"], (), "") if is_sent else (None, ("stop",), "{}")
    )


@pytest.mark.parametrize(
    "body",
    [
        "<html>a page</html>",
        '{"choices": []}',
        "{}",
        "[]",
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {}}], "usage": 1}',
    ],
)
async def test_answer_that_is_no_completion_is_a_failure_of_the_server(body: str) -> None:
    with pytest.raises(TemporaryError) as raised:
        await generate(httpx.Response(200, text=body))
    assert raised.value.code == "server-failed"


@pytest.mark.parametrize("data", ["<html>", "[1]", '"text"'])
async def test_stream_with_a_broken_event_is_a_failure_of_the_server(data: str) -> None:
    with pytest.raises(TemporaryError) as raised:
        await generate(httpx.Response(200, text=f"data: {data}\n\n"), stream=True)
    assert raised.value.code == "server-failed"


async def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(PermanentError) as raised:
        await generate(completion("never sent"), content="a\ud800b")
    assert raised.value.code == "prompt-unreadable"


async def test_error_does_not_quote_headers_or_credentials() -> None:
    with pytest.raises(TemporaryError) as raised:
        await generate(httpx.LocalProtocolError("Illegal header value b'Bearer secret'"))
    assert str(raised.value) == "the model server at http://server/v1/ did not answer: LocalProtocolError"


@pytest.mark.parametrize(("owner", "limit"), [("vllm", "pattern"), ("organization-owner", "maxLength")])
async def test_only_vllm_gets_lengths_as_patterns(owner: str, limit: str) -> None:
    """Its grammar lets control characters into a string with a length; another server may not know patterns."""
    models = httpx.Response(200, json={"data": [{"id": "model", "owned_by": owner}]})
    transport = httpx.MockTransport(lambda _: models)
    async with httpx.AsyncClient(transport=transport, base_url="http://server/v1") as http:
        served = await OpenAiTextEngine(http, None, retry_seconds=1.0).served_models()
    request = GenerationRequest([{"role": "user", "content": "?"}], max_tokens=8, temperature=0, top_p=1, schema=NAMED)
    body = build_request_body(request, served.model, by_vllm=served.by_vllm)
    assert list(body["response_format"]["json_schema"]["schema"]["properties"]["name"]) == ["type", limit]


NAMED = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}


@pytest.mark.parametrize(("strict", "sent"), [(None, True), (True, True), (False, False)])
def test_vllm_obeys_the_schema_of_each_tool_unless_the_client_says_otherwise(strict: bool | None, sent: bool) -> None:
    function = {"name": "f", "parameters": NAMED} | ({} if strict is None else {"strict": strict})
    request = GenerationRequest([], max_tokens=8, temperature=0, top_p=1, tools=({"type": "function", "function": function},))
    (by_vllm,), (other,) = (build_request_body(request, "m", by_vllm=by_vllm)["tools"] for by_vllm in (True, False))
    assert by_vllm["function"]["strict"] is sent
    assert ("pattern" in by_vllm["function"]["parameters"]["properties"]["name"]) is sent
    assert other["function"] == function


def test_only_vllm_gets_the_tenant_as_the_owner_of_a_prefix() -> None:
    request = GenerationRequest([], max_tokens=8, temperature=0, top_p=1, tenant="shop")
    assert build_request_body(request, "m", by_vllm=True)["cache_salt"] == "shop"
    assert "cache_salt" not in build_request_body(request, "m")
