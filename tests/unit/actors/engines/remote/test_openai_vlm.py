"""The vision-language engine behind an OpenAI-compatible server: requests, responses and errors."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from pydantic import SecretStr

from actors.engines.language.requests import VlmRequest
from actors.engines.remote.openai_vlm import OpenAiVlm, open_openai_vlm
from actors.vision.verdict_parser import parse_verdict
from bus.errors import PermanentError, TemporaryError
from contracts.verdict import AdVerdictSchema
from tests.support.fake_openai_server import AD_VERDICT, FakeOpenAiServer, open_fake_openai_server

SCHEMA = json.dumps(AdVerdictSchema.model_json_schema())
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


@pytest.fixture
async def server() -> AsyncIterator[FakeOpenAiServer]:
    async with open_fake_openai_server() as server:
        yield server


@pytest.fixture
async def vlm(server: FakeOpenAiServer) -> AsyncIterator[OpenAiVlm]:
    async with open_openai_vlm(server.url, SecretStr("sk-test"), "second", 5) as vlm:
        yield vlm


async def test_request_contains_text_and_image_with_temperature_zero(vlm: OpenAiVlm, server: FakeOpenAiServer) -> None:
    response = await vlm.generate(VlmRequest("What is it?", (PNG,), 64, 1.1))

    (body,) = server.requests
    image, text = body["messages"][0]["content"]
    assert (body["model"], body["max_tokens"], body["temperature"], body["repetition_penalty"]) == ("second", 64, 0, 1.1)
    assert text == {"type": "text", "text": "What is it?"}
    assert image["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert (response.finish_reason, response.completion_tokens, response.constrained) == ("stop", 5, False)
    assert server.authorization_headers == {"Bearer sk-test"}


async def test_verdict_request_sends_schema_and_max_tokens(vlm: OpenAiVlm, server: FakeOpenAiServer) -> None:
    response = await vlm.generate(VlmRequest("?", (), 512, 1.0, SCHEMA, 2691))

    (body,) = server.requests
    assert body["response_format"]["json_schema"]["schema"] == AdVerdictSchema.model_json_schema()
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["max_tokens"] == 2691
    assert response.constrained
    assert parse_verdict(response, AdVerdictSchema) == (AdVerdictSchema.model_validate(AD_VERDICT), False)


async def test_server_that_rejects_schema_is_called_without_it_from_then_on(vlm: OpenAiVlm, server: FakeOpenAiServer) -> None:
    server.respond = lambda body: 400 if "response_format" in body else f"Sure! ```json\n{json.dumps(AD_VERDICT)}\n```"

    responses = [await vlm.generate(VlmRequest("?", (), 512, 1.0, SCHEMA, 2691)) for _ in range(2)]

    assert [response.constrained for response in responses] == [False, False]
    assert parse_verdict(responses[0], AdVerdictSchema) == (AdVerdictSchema.model_validate(AD_VERDICT), True)
    assert ["response_format" in body for body in server.requests] == [True, False, False]


async def test_unserved_model_falls_back_to_first_served(server: FakeOpenAiServer) -> None:
    async with open_openai_vlm(server.url, None, "absent", 5) as vlm:
        assert await vlm.served_model() == "first"


@pytest.mark.parametrize(("status", "kind"), [(500, TemporaryError), (503, TemporaryError), (429, TemporaryError), (401, PermanentError)])
async def test_status_maps_to_temporary_or_permanent_error(
    vlm: OpenAiVlm, server: FakeOpenAiServer, status: int, kind: type[Exception]
) -> None:
    server.respond = lambda _: status
    with pytest.raises(kind, match=str(status)):
        await vlm.generate(VlmRequest("?"))


async def test_unavailable_or_slow_server_raises_temporary_error(vlm: OpenAiVlm, server: FakeOpenAiServer) -> None:
    await vlm.served_model()

    server.release_event = asyncio.Event()
    with pytest.raises(TemporaryError) as slow:
        await vlm.generate(VlmRequest("?"), deadline=datetime.now(UTC) + timedelta(seconds=0.1))
    async with open_openai_vlm("http://127.0.0.1:9/v1", None, "m", 1) as unreachable:
        with pytest.raises(TemporaryError) as unavailable:
            await unreachable.generate(VlmRequest("?"))
    assert (slow.value.code, unavailable.value.code) == ("server-away", "server-away")


async def test_missing_address_names_its_setting() -> None:
    with pytest.raises(PermanentError, match="VLM_BASE_URL"):
        async with open_openai_vlm(None, None, "m", 1):
            pass


@pytest.mark.parametrize("body", ["<html>a page</html>", "[]", '{"choices": []}'])
async def test_answer_that_is_no_completion_is_a_failure_of_the_server(body: str) -> None:
    models = {"data": [{"id": "second"}]}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=models) if request.url.path.endswith("/models") else httpx.Response(200, text=body)

    async with httpx.AsyncClient(base_url="http://server/v1/", transport=httpx.MockTransport(answer)) as http:
        with pytest.raises(TemporaryError) as raised:
            await OpenAiVlm(http, "second").generate(VlmRequest("?", (), 8, 1.0))
    assert raised.value.code == "server-failed"
