"""Embed: texts become vectors, by an embedding model in a process of the worker or that of a server.

Reads texts; returns their vectors, in order, and the number of their tokens. It answers questions only: no events, no retries.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from actors.embeddings.models import PREFETCH, EmbeddingModel, open_embedding_model
from actors.embeddings.settings import EmbeddingSettings
from actors.engines.embedding.requests import EmbeddingRequest
from actors.engines.shared_resource import open_shared
from bus.actor import Context, Handler, OpenHandler, Resources, query_actor
from bus.errors import PermanentError, TemporaryError
from bus.observability.gen_ai import trace_model_call
from contracts.embed import DEFAULT_EMBEDDING_MODEL, Embed, EmbedDone, EmbedStatus, GetEmbedStatus
from contracts.wire import Result

READY_TIMEOUT_SECONDS = 2.0
MAX_RESULT_CHARS = 900_000
"""Of all vectors in base64: a message is limited to 1 MiB."""


def with_model(handler: Callable[..., Coroutine[Any, Any, Result]], *, pauses: bool) -> OpenHandler:
    """Opens `handler` with the model as its keyword argument `model`; all handlers share one.

    `pauses`: its consumer is paused while the model cannot serve, and its engine is in health checks and metrics. The status is reported
    all the same.
    """

    @asynccontextmanager
    async def open_handler(resources: Resources) -> AsyncIterator[Handler]:
        open_model = partial(open_embedding_model, EmbeddingSettings())
        set_unready = resources.set_unready if pauses else lambda _: None
        async with open_shared(resources.shared, "embedding-model", open_model, set_unready) as model:
            if pauses and model.engine:
                resources.register_engine(model.engine)
            yield partial(handler, model=model)

    return open_handler


async def embed(command: Embed, context: Context, *, model: EmbeddingModel) -> EmbedDone:
    """Raises PermanentError("embeddings-unconfigured" · "model-unknown" · "prompt-too-long" · "dimensions-unsupported" …)."""
    name = await model.ready()
    if command.model not in (None, DEFAULT_EMBEDDING_MODEL, name):
        raise PermanentError("model-unknown", f"The model {command.model!r} is not served; served is {name}.")
    with trace_model_call("embeddings", model.provider, name, dimensions=command.dimensions, encoding_formats=["float"]) as call:
        response = await model.embed(EmbeddingRequest(tuple(command.inputs), command.dimensions), context)
        call.record(response_model=name, usage_input_tokens=response.prompt_tokens)
    vectors = [base64.b64encode(vector).decode() for vector in response.vectors]
    if sum(map(len, vectors)) > MAX_RESULT_CHARS:
        raise PermanentError("too-many-numbers", f"{len(vectors)} vectors of this size do not fit into a message: send fewer inputs")
    return EmbedDone(vectors=vectors, model_name=name, prompt_tokens=response.prompt_tokens)


async def get_status(command: GetEmbedStatus, context: Context, *, model: EmbeddingModel) -> EmbedStatus:
    """Raises TemporaryError while the model loads or its server is unavailable, PermanentError without a model."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            return await model.status()
    except TimeoutError:
        raise TemporaryError("the model is loading", code="loading") from None


ACTORS = (
    query_actor(
        "embed",
        Embed,
        EmbedDone,
        with_model(embed, pauses=True),
        "Makes vectors of texts.",
        timeout_seconds=300,
        prefetch=PREFETCH,
    ),
    query_actor(
        "embed.status",
        GetEmbedStatus,
        EmbedStatus,
        with_model(get_status, pauses=False),
        "Returns the embedding model.",
        timeout_seconds=10,
        prefetch=4,
    ),
)
