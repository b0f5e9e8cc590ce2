"""The models behind the embed actor: one in a process of the worker, or that of a server."""

import math
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx

from actors.embeddings.settings import UNCONFIGURED, EmbeddingSettings
from actors.engines.embedding.requests import ENGINE_FACTORY, EmbeddingRequest, EmbeddingResponse
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.remote.openai_client import open_client, parse_completion, parsing_answer, send_bounded, status_error
from actors.engines.remote.served_models import ServedModels, find_model, read_models
from actors.engines.settings import ExecutorSettings
from actors.engines.shared_resource import SetUnready
from bus.actor import Context, ObservableEngine
from bus.errors import PermanentError
from bus.observability.gen_ai import Provider
from contracts.embed import EmbedStatus

PREFETCH = 8
CONNECTION_LIMITS = httpx.Limits(max_connections=PREFETCH)
MAX_LISTED_NAMES = 20
"""Of a server's models, in an error."""


class EmbeddingModel(Protocol):
    """`provider`: in traces. `engine`: of a model in a process of the worker."""

    provider: Provider
    engine: ObservableEngine | None

    async def ready(self) -> str:
        """The model's name. Raises PermanentError, TemporaryError."""
        ...

    async def embed(self, request: EmbeddingRequest, context: Context) -> EmbeddingResponse:
        """Raises PermanentError, TemporaryError, EngineCrashed."""
        ...

    async def status(self) -> EmbedStatus:
        """Raises PermanentError, TemporaryError."""
        ...


class NoModel:
    """No model is configured: each request is refused with the settings that would change it."""

    provider: Provider = "atelier"
    engine: ObservableEngine | None = None

    async def ready(self) -> str:
        raise PermanentError("embeddings-unconfigured", UNCONFIGURED)

    async def embed(self, request: EmbeddingRequest, context: Context) -> EmbeddingResponse:
        raise PermanentError("embeddings-unconfigured", UNCONFIGURED)

    async def status(self) -> EmbedStatus:
        raise PermanentError("embeddings-unconfigured", UNCONFIGURED)


class EmbeddedModel:
    """A model in a process of the worker."""

    provider: Provider = "atelier"

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.engine: ObservableEngine | None = executor

    async def ready(self) -> str:
        await self._executor.ready()
        return str(self._executor.info["model"])

    async def embed(self, request: EmbeddingRequest, context: Context) -> EmbeddingResponse:
        execution = await self._executor.run(request, tenant=context.tenant or "", deadline=context.deadline)
        response: EmbeddingResponse = execution.result
        return response

    async def status(self) -> EmbedStatus:
        model, info = await self.ready(), self._executor.info
        config = {name: info[name] for name in ("device", "dtype", "pooling")}
        return EmbedStatus(
            model_name=model, engine="embedded", dimensions=info["dimensions"], max_model_len=info["max_model_len"], engine_config=config
        )


class ServerModel:
    """A model of a server with `/v1/embeddings`. It is not asked again after a failure: clients of the gateway repeat what may succeed.

    No other model takes the place of one that the settings name: its vectors do not belong into the same index.
    """

    provider: Provider = "openai"
    engine: ObservableEngine | None = None

    def __init__(self, http: httpx.AsyncClient, requested: str | None) -> None:
        self._http, self._requested = http, requested
        self._served: ServedModels | None = None

    async def _models(self) -> ServedModels:
        if self._served is None:
            response = await send_bounded(self._http, self._http.build_request("GET", "models"))
            served = read_models(response, self._requested, setting="EMBEDDING_MODEL")
            if self._requested and not find_model(self._requested, served.names):
                raise _other_models(self._requested, served.names)
            self._served = served
        return self._served

    async def ready(self) -> str:
        return (await self._models()).model

    async def embed(self, request: EmbeddingRequest, context: Context) -> EmbeddingResponse:
        body: dict[str, Any] = {"model": await self.ready(), "input": list(request.inputs), "encoding_format": "float"}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        response = await send_bounded(self._http, self._http.build_request("POST", "embeddings", json=body))
        if error := status_error(response):
            self._served = None  # the server may have another model now
            raise error
        return read_vectors(response, len(request.inputs))

    async def status(self) -> EmbedStatus:
        served = await self._models()
        return EmbedStatus(model_name=served.model, engine="openai", max_model_len=served.max_model_len)


def _other_models(requested: str, names: Sequence[str]) -> PermanentError:
    listed = ", ".join(names[:MAX_LISTED_NAMES]) + (" …" if len(names) > MAX_LISTED_NAMES else "")
    message = f"EMBEDDING_MODEL is {requested!r}, which the server at EMBEDDING_SERVER_URL does not list: set it to one of {listed}"
    return PermanentError("embeddings-unconfigured", message)


def read_vectors(response: httpx.Response, count: int) -> EmbeddingResponse:
    """Raises TemporaryError("server-failed") unless the answer has one vector of finite numbers for each of `count` inputs."""
    body = parse_completion(response)
    with parsing_answer():
        entries = {int(entry.get("index", place)): entry["embedding"] for place, entry in enumerate(body["data"])}
        vectors = tuple(pack_vector(entries[index]) for index in range(count))
        if len(entries) != count or len(set(map(len, vectors))) != 1:
            raise ValueError("not one vector of the same size for each input")
        return EmbeddingResponse(vectors, max(0, int((body.get("usage") or {}).get("prompt_tokens") or 0)))


def pack_vector(numbers: list[float]) -> bytes:
    """Little-endian float32. Raises ValueError, TypeError for what is no list of finite numbers."""
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError("a vector is empty, or not of finite numbers")
    try:
        return struct.pack(f"<{len(numbers)}f", *numbers)
    except (struct.error, OverflowError) as error:
        raise ValueError(str(error)) from error


@asynccontextmanager
async def open_embedding_model(settings: EmbeddingSettings, set_unready: SetUnready) -> AsyncIterator[EmbeddingModel]:
    """The model that the settings name; without one, a model that refuses each request."""
    if settings.server_url:
        opening = open_client(
            settings.server_url, settings.api_key, settings.server_seconds, CONNECTION_LIMITS, setting="EMBEDDING_SERVER_URL"
        )
        async with opening as http:
            yield ServerModel(http, settings.model)
    elif settings.model:
        spec = EngineSpec(ENGINE_FACTORY, settings.model_options())
        async with open_executor(
            spec, ExecutorSettings(), max_in_flight=PREFETCH, capacity=PREFETCH, set_unready=set_unready
        ) as executor:  # fmt: skip
            yield EmbeddedModel(executor)
    else:
        yield NoModel()
