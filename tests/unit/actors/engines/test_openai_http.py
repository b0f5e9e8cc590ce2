"""The engine behind an OpenAI-compatible server: what is sent, what is read, and what becomes of its failures."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from actors.engines.openai_http import OpenAiServer, open_server
from actors.engines.vlm import Question
from actors.seeing.answers import read_verdict
from bus.errors import PermanentError, TemporaryError
from contracts.verdict import AdOpinion
from tests.model_server import AD_VERDICT, ModelServer, open_model_server

SCHEMA = json.dumps(AdOpinion.model_json_schema())
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with open_model_server() as model:
        yield model


@pytest.fixture
async def server(model: ModelServer) -> AsyncIterator[OpenAiServer]:
    async with open_server(model.url, SecretStr("sk-test"), "second", 5) as server:
        yield server


async def test_a_question_goes_as_text_and_picture_greedily(server: OpenAiServer, model: ModelServer) -> None:
    answer = await server.ask(Question("What is it?", PNG, 64, 1.1))

    (asked,) = model.questions
    picture, text = asked["messages"][0]["content"]
    assert (asked["model"], asked["max_tokens"], asked["temperature"], asked["repetition_penalty"]) == ("second", 64, 0, 1.1)
    assert text == {"type": "text", "text": "What is it?"}
    assert picture["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert (answer.finish, answer.tokens, answer.constrained) == ("stop", 5, False)
    assert model.keys == {"Bearer sk-test"}


async def test_a_verdict_is_held_to_its_schema_with_room_for_the_longest(server: OpenAiServer, model: ModelServer) -> None:
    answer = await server.ask(Question("?", None, 512, 1.0, SCHEMA, 2691))

    (asked,) = model.questions
    assert asked["response_format"]["json_schema"]["schema"] == AdOpinion.model_json_schema()
    assert asked["response_format"]["json_schema"]["strict"] is True
    assert asked["max_tokens"] == 2691
    assert answer.constrained
    assert read_verdict(answer, AdOpinion) == (AdOpinion.model_validate(AD_VERDICT), False)


async def test_a_server_that_cannot_constrain_is_asked_without_and_its_verdict_mended(server: OpenAiServer, model: ModelServer) -> None:
    """From then on it is not asked to constrain again."""
    model.say = lambda body: 400 if "response_format" in body else f"Sure! ```json\n{json.dumps(AD_VERDICT)}\n```"

    answers = [await server.ask(Question("?", None, 512, 1.0, SCHEMA, 2691)) for _ in range(2)]

    assert [answer.constrained for answer in answers] == [False, False]
    assert read_verdict(answers[0], AdOpinion) == (AdOpinion.model_validate(AD_VERDICT), True)
    assert ["response_format" in asked for asked in model.questions] == [True, False, False]


async def test_a_model_that_is_not_served_is_replaced_by_the_first_that_is(model: ModelServer) -> None:
    async with open_server(model.url, None, "absent", 5) as server:
        assert await server.served_model() == "first"


@pytest.mark.parametrize(("status", "kind"), [(500, TemporaryError), (503, TemporaryError), (429, TemporaryError), (401, PermanentError)])
async def test_a_failure_is_temporary_or_not(server: OpenAiServer, model: ModelServer, status: int, kind: type[Exception]) -> None:
    model.say = lambda _: status
    with pytest.raises(kind, match=str(status)):
        await server.ask(Question("?"))


async def test_a_server_that_is_away_or_too_slow_is_a_temporary_failure(server: OpenAiServer, model: ModelServer) -> None:
    await server.served_model()

    model.hold = asyncio.Event()
    with pytest.raises(TemporaryError) as slow:
        await server.ask(Question("?"), deadline=datetime.now(UTC) + timedelta(seconds=0.1))
    async with open_server("http://127.0.0.1:9/v1", None, "m", 1) as nowhere:
        with pytest.raises(TemporaryError) as away:
            await nowhere.ask(Question("?"))
    assert (slow.value.code, away.value.code) == ("server-away", "server-away")


async def test_an_engine_without_an_address_says_which_setting_is_missing() -> None:
    with pytest.raises(PermanentError, match="VLM_BASE_URL"):
        async with open_server(None, None, "m", 1):
            pass
