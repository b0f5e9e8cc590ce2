"""Embeddings through the official OpenAI client: gateway, RabbitMQ, the embed actor, and a tiny model in its process."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI
from structlog.testing import capture_logs

from actors import embed
from bus.observability import metrics
from bus.settings import BusSettings
from tests.support.broker_client import StartWorker, wait_until
from tests.support.live_gateway import live_gateway, official_client
from tests.support.tiny_encoders import LENGTH, SIZE, write_tiny_encoder

pytestmark = pytest.mark.timeout(900)
LOAD_SECONDS = 600.0
"""A machine that does other work, too, imports torch slowly."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made before a connection is open."""
    return write_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
async def client(bus_settings: BusSettings, store_folder: Path, purged_queues: None) -> AsyncIterator[AsyncOpenAI]:
    async with live_gateway(bus_settings, store_folder, request_seconds=200) as url, official_client(url) as client:
        yield client


async def test_loaded_model_embeds(
    client: AsyncOpenAI, start_worker: StartWorker, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More inputs than one command has; the client asks for base64 by itself. The log has the device seconds of each command."""
    monkeypatch.setenv("EMBEDDING_MODEL", str(model_folder))
    monkeypatch.setenv("EMBEDDING_DIMENSIONS", "[8]")
    monkeypatch.setenv("EMBEDDING_THREADS", "1")
    texts = [f"text {number}" for number in range(40)]
    counted = device_seconds()
    with capture_logs() as entries:
        async with start_worker(*embed.ACTORS):
            await wait_until(lambda: has_models(client), LOAD_SECONDS)
            answer = await client.embeddings.create(model="embedding", input=texts)
            floats = await client.embeddings.create(model="tiny-bert", input=texts[7], encoding_format="float", dimensions=8)
            raw = (await client.embeddings.create(model="tiny-bert", input=texts[7], encoding_format="base64")).data[0].embedding
            names = [model.id async for model in client.models.list()]
            with pytest.raises(openai.BadRequestError) as too_long:
                await client.embeddings.create(model="embedding", input=["a", "a" * (LENGTH + 1)])
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.embeddings.create(model="text-embedding-3-small", input="a")
    logged = [entry["device_seconds"] for entry in entries if entry["event"] == "step.completed" and entry["step"] == "embed"]
    assert len(logged) == 4
    assert min(logged) > 0
    measured = sum(entry.get("device_seconds", 0.0) for entry in entries)
    assert device_seconds() - counted == pytest.approx(measured, abs=1e-4), "also what the refused request cost"
    vectors = np.array([entry.embedding for entry in answer.data])
    assert vectors.shape == (40, SIZE)
    assert [entry.index for entry in answer.data] == list(range(40))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cut = vectors[7, :8] / np.linalg.norm(vectors[7, :8])
    np.testing.assert_allclose(floats.data[0].embedding, cut, atol=1e-5)
    assert isinstance(raw, str)
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), vectors[7], atol=1e-5)
    assert (answer.usage.prompt_tokens, answer.model, names) == (sum(map(len, texts)), "tiny-bert", ["tiny-bert"])
    assert (too_long.value.code, too_long.value.param, unknown.value.code) == ("context_length_exceeded", "input", "model_not_found")


async def has_models(client: AsyncOpenAI) -> bool:
    return bool([model.id async for model in client.models.list()])


def device_seconds() -> float:
    """What the metric has counted for the step."""
    [family] = metrics.DEVICE_SECONDS.collect()
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total") and sample.labels["step"] == "embed")


async def test_without_a_model_it_is_501(client: AsyncOpenAI, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether no worker runs, or one without a model; the official client does not repeat it."""
    monkeypatch.delenv("EMBEDDING_MODEL", raising=False)
    repeating = client.with_options(max_retries=2)

    async def ask() -> tuple[int, str | None]:
        with pytest.raises(openai.InternalServerError, match="EMBEDDING_SERVER_URL") as raised:
            await repeating.embeddings.create(model="embedding", input="a")
        return raised.value.status_code, raised.value.code

    assert await ask() == (501, "embeddings_unconfigured")
    async with start_worker(*embed.ACTORS):
        assert await ask() == (501, "embeddings_unconfigured")
