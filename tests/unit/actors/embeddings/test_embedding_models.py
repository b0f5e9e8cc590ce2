"""The model of an embedding server: what it is asked, what is read of its answers, and the actor's own refusals."""

import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from actors.embed import embed, get_status
from actors.embeddings.models import EmbeddingModel, open_embedding_model
from actors.embeddings.settings import EmbeddingSettings
from bus.errors import PermanentError, TemporaryError
from contracts.embed import Embed, EmbedDone, GetEmbedStatus
from tests.support.actor_context import make_context
from tests.support.raw_openai_server import RawAnswer, RawOpenAiServer, open_raw_server

CONTEXT = make_context()


def vector(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def answer(*vectors: Any, **fields: Any) -> RawAnswer:
    data = [{"object": "embedding", "index": index, "embedding": numbers} for index, numbers in enumerate(vectors)]
    return RawAnswer(body={"object": "list", "data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}} | fields)


@asynccontextmanager
async def open_model(response: RawAnswer) -> AsyncIterator[tuple[EmbeddingModel, RawOpenAiServer]]:
    async with open_raw_server(lambda body: response) as server:
        server.route = "/embeddings"
        async with open_embedding_model(EmbeddingSettings.model_validate({"server_url": server.url}), lambda _: None) as model:
            yield model, server


async def ask(response: RawAnswer, *texts: str, **fields: Any) -> tuple[EmbedDone, RawOpenAiServer]:
    async with open_model(response) as (model, server):
        return await embed(Embed(inputs=list(texts), **fields), CONTEXT, model=model), server


async def test_server_is_asked_for_its_model() -> None:
    done, server = await ask(answer([1.0, 2.0], [3, 4]), "a", "b", dimensions=2)
    assert (done.vectors, done.model_name, done.prompt_tokens) == ([vector(1, 2), vector(3, 4)], "m", 5)
    assert server.requests == [{"model": "m", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2}]


async def test_vectors_are_read_by_their_index() -> None:
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    done, _ = await ask(RawAnswer(body={"data": data}), "a", "b")
    assert (done.vectors, done.prompt_tokens) == ([vector(1), vector(2)], 0)


@pytest.mark.parametrize(
    "response",
    [
        answer([1.0]),
        answer([1.0], [1.0], [1.0]),
        answer([1.0], [1.0, 2.0]),
        answer([], []),
        answer([1.0], ["x"]),
        answer([1.0], [1e300]),
        answer([1.0], None),
        RawAnswer(body={"data": {}}),
        RawAnswer(body=b"<html>"),
        RawAnswer(503, body={"error": {"message": "busy"}}),
    ],
)
async def test_other_answers_are_failures_of_the_server(response: RawAnswer) -> None:
    with pytest.raises(TemporaryError) as raised:
        await ask(response, "a", "b")
    assert raised.value.code == "server-failed"


async def test_refusal_of_the_server_is_that_of_the_request() -> None:
    with pytest.raises(PermanentError, match="too long") as raised:
        await ask(RawAnswer(400, body={"error": {"message": "the input is too long"}}), "a")
    assert raised.value.code == "server-refused"


async def test_model_has_two_names() -> None:
    for name in (None, "embedding", "m"):
        assert (await ask(answer([1.0]), "a", model=name))[0].model_name == "m"
    with pytest.raises(PermanentError, match="served is m") as raised:
        await ask(answer([1.0]), "a", model="other")
    assert raised.value.code == "model-unknown"


async def test_more_numbers_than_a_message_holds_are_refused() -> None:
    with pytest.raises(PermanentError) as raised:
        await ask(answer(*[[0.5] * 6000] * 32), *["a"] * 32)
    assert raised.value.code == "too-many-numbers"


async def test_without_a_model_each_request_is_refused_with_the_settings() -> None:
    async with open_embedding_model(EmbeddingSettings(), lambda _: None) as opened:
        for call in (embed(Embed(inputs=["a"]), CONTEXT, model=opened), get_status(GetEmbedStatus(), CONTEXT, model=opened)):
            with pytest.raises(PermanentError, match="EMBEDDING_MODEL") as raised:
                await call
            assert raised.value.code == "embeddings-unconfigured"


@pytest.mark.parametrize("inputs", [[], [""], ["a"] * 33, ["a" * 400_001]])
def test_inputs_of_a_command_are_bounded(inputs: list[str]) -> None:
    with pytest.raises(ValidationError):
        Embed(inputs=inputs)
