"""The engine behind an OpenAI-compatible server: what is sent, what is read, and what becomes of its failures."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

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
async def model() -> AsyncIterator[FakeOpenAiServer]:
    async with open_fake_openai_server() as model:
        yield model


@pytest.fixture
async def server(model: FakeOpenAiServer) -> AsyncIterator[OpenAiVlm]:
    async with open_openai_vlm(model.url, SecretStr("sk-test"), "second", 5) as server:
        yield server


async def test_request_contains_text_and_image_with_temperature_zero(server: OpenAiVlm, model: FakeOpenAiServer) -> None:
    answer = await server.generate(VlmRequest("What is it?", PNG, 64, 1.1))

    (asked,) = model.requests
    picture, text = asked["messages"][0]["content"]
    assert (asked["model"], asked["max_tokens"], asked["temperature"], asked["repetition_penalty"]) == ("second", 64, 0, 1.1)
    assert text == {"type": "text", "text": "What is it?"}
    assert picture["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert (answer.finish_reason, answer.completion_tokens, answer.constrained) == ("stop", 5, False)
    assert model.authorization_headers == {"Bearer sk-test"}


async def test_verdict_request_sends_schema_and_max_tokens(server: OpenAiVlm, model: FakeOpenAiServer) -> None:
    answer = await server.generate(VlmRequest("?", None, 512, 1.0, SCHEMA, 2691))

    (asked,) = model.requests
    assert asked["response_format"]["json_schema"]["schema"] == AdVerdictSchema.model_json_schema()
    assert asked["response_format"]["json_schema"]["strict"] is True
    assert asked["max_tokens"] == 2691
    assert answer.constrained
    assert parse_verdict(answer, AdVerdictSchema) == (AdVerdictSchema.model_validate(AD_VERDICT), False)


async def test_server_without_constraints_falls_back_to_repair(server: OpenAiVlm, model: FakeOpenAiServer) -> None:
    """From then on it is not asked to constrain again."""
    model.respond = lambda body: 400 if "response_format" in body else f"Sure! ```json\n{json.dumps(AD_VERDICT)}\n```"

    answers = [await server.generate(VlmRequest("?", None, 512, 1.0, SCHEMA, 2691)) for _ in range(2)]

    assert [answer.constrained for answer in answers] == [False, False]
    assert parse_verdict(answers[0], AdVerdictSchema) == (AdVerdictSchema.model_validate(AD_VERDICT), True)
    assert ["response_format" in asked for asked in model.requests] == [True, False, False]


async def test_unserved_model_falls_back_to_first_served(model: FakeOpenAiServer) -> None:
    async with open_openai_vlm(model.url, None, "absent", 5) as server:
        assert await server.served_model() == "first"


@pytest.mark.parametrize(("status", "kind"), [(500, TemporaryError), (503, TemporaryError), (429, TemporaryError), (401, PermanentError)])
async def test_status_maps_to_temporary_or_permanent_error(
    server: OpenAiVlm, model: FakeOpenAiServer, status: int, kind: type[Exception]
) -> None:
    model.respond = lambda _: status
    with pytest.raises(kind, match=str(status)):
        await server.generate(VlmRequest("?"))


async def test_unavailable_or_slow_server_raises_temporary_error(server: OpenAiVlm, model: FakeOpenAiServer) -> None:
    await server.served_model()

    model.release_event = asyncio.Event()
    with pytest.raises(TemporaryError) as slow:
        await server.generate(VlmRequest("?"), deadline=datetime.now(UTC) + timedelta(seconds=0.1))
    async with open_openai_vlm("http://127.0.0.1:9/v1", None, "m", 1) as nowhere:
        with pytest.raises(TemporaryError) as away:
            await nowhere.generate(VlmRequest("?"))
    assert (slow.value.code, away.value.code) == ("server-away", "server-away")


async def test_an_engine_without_an_address_says_which_setting_is_missing() -> None:
    with pytest.raises(PermanentError, match="VLM_BASE_URL"):
        async with open_openai_vlm(None, None, "m", 1):
            pass
