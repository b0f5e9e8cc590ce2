"""The model of an embedding server: what it is asked, what is read of its answers, and the actor's own refusals."""

import base64
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.embed import ACTORS, embed, get_status
from actors.embeddings.models import EmbeddingModel, open_embedding_model
from actors.embeddings.settings import EmbeddingSettings
from bus.actor import ObservableEngine, Resources
from bus.errors import PermanentError, TemporaryError
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
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
async def open_model(response: RawAnswer, **settings: Any) -> AsyncIterator[tuple[EmbeddingModel, RawOpenAiServer]]:
    async with open_raw_server(lambda body: response) as server:
        server.route = "/embeddings"
        chosen = EmbeddingSettings.model_validate({"server_url": server.url} | settings)
        async with open_embedding_model(chosen, lambda _: None) as model:
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
        answer([1.0], [10**400]),
        answer([1.0], [1.0], usage={"prompt_tokens": float("inf")}),
        RawAnswer(body={"data": [{"index": 0, "embedding": [1.0]}, {"index": float("inf"), "embedding": [1.0]}]}),
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


def listing(*names: str) -> RawAnswer:
    return RawAnswer(body={"data": [{"id": name} for name in names]})


async def test_model_that_the_server_does_not_list_is_replaced_by_no_other() -> None:
    """Its vectors would not belong into the index. It is found when the server has it, also in a folder or with a tag."""
    command = Embed(inputs=["a"])
    async with open_model(answer([1.0]), model="bge") as (model, server):
        server.models = listing("chat", *(f"m{number}" for number in range(30)))
        with pytest.raises(PermanentError, match=r"'bge', which .* does not list: set it to one of chat, m0, .*m18 …$") as raised:
            await embed(command, CONTEXT, model=model)
        assert (raised.value.code, server.requests) == ("embeddings-unconfigured", [])
        server.models = listing("chat", "bge:latest")
        assert (await embed(command, CONTEXT, model=model)).model_name == "bge:latest"


async def test_model_is_asked_for_again_after_a_refusal() -> None:
    """The server may have been started with another one."""
    async with open_model(RawAnswer(404, body={"error": {"message": "no such model"}})) as (model, server):
        assert await model.ready() == "m"
        server.models = listing("newer")
        assert await model.ready() == "m"
        with pytest.raises(PermanentError, match="no such model"):
            await embed(Embed(inputs=["a"]), CONTEXT, model=model)
        assert await model.ready() == "newer"


async def test_server_without_a_list_is_asked_for_the_named_model() -> None:
    async with open_model(answer([1.0]), model="bge") as (model, server):
        server.models = RawAnswer(404)
        assert (await embed(Embed(inputs=["a"]), CONTEXT, model=model)).model_name == "bge"


async def test_count_of_tokens_is_not_negative() -> None:
    assert (await ask(answer([1.0], usage={"prompt_tokens": -5}), "a"))[0].prompt_tokens == 0


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


async def test_engine_of_a_loaded_model_is_registered_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In health checks and metrics, though two actors share it."""
    monkeypatch.setenv("EMBEDDING_MODEL", str(tmp_path))
    registered = list[ObservableEngine]()
    async with open_claim_store(StoreSettings(store_url=tmp_path.as_uri())) as claims, AsyncExitStack() as stack:
        resources = Resources(claims, register_engine=registered.append)
        for actor in ACTORS:
            await stack.enter_async_context(actor.open(resources))
        [engine] = registered
        assert await engine.unavailable_reason() == "the model process is starting"
        assert engine.snapshot()["engine_busy_seconds_total"] == 0


@pytest.mark.parametrize("inputs", [[], [""], ["a"] * 33, ["a" * 400_001]])
def test_inputs_of_a_command_are_bounded(inputs: list[str]) -> None:
    with pytest.raises(ValidationError):
        Embed(inputs=inputs)
