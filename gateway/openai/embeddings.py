"""OpenAI's `POST /v1/embeddings`: commands to the embed actor, whose vectors are returned as numbers or as base64."""

import base64
import json
import struct
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict, Field, JsonValue

from contracts.embed import DEFAULT_EMBEDDING_MODEL, MAX_INPUTS, EmbedDone, InputText
from gateway.deadlines import request_timeout
from gateway.memory_budget import hold_bytes
from gateway.openai.errors import ERROR_RESPONSES, NO_RETRY, OpenAIRoute
from gateway.openai.models import EMBED_STATUS_STEP
from gateway.openai.strict_body import NoEffect, StrictBody, texts_only
from gateway.problems import RETRY_AFTER, HttpProblem
from gateway.services import services_of
from gateway.strict_model import HttpModel

router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)

STEP = "embed"
QUERY_STEPS = (STEP, EMBED_STATUS_STEP)
EMBEDDING_REQUEST_EXAMPLE: dict[str, JsonValue] = {"model": DEFAULT_EMBEDDING_MODEL, "input": ["a red fox", "an owl"]}
MAX_REQUEST_INPUTS = 2048
MAX_COMMAND_CHARS = 400_000
"""Of several inputs together."""
TEXTS_ONLY = (
    "an input is a text, or a list of texts. Token ids are those of OpenAI's models: send texts "
    "(langchain: check_embedding_ctx_length=False)"
)
NOT_SERVED = "No embedding model is served: set EMBEDDING_SERVER_URL, or EMBEDDING_MODEL, at the worker, and run `atelier run embed`."
PART_CHARS = 64 << 10
"""Of a response that are sent at once."""
NUMBER_BYTES = 4


class EmbeddingRequest(StrictBody):
    """A request for embeddings. Unknown fields are refused; null means what an absent field means."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EMBEDDING_REQUEST_EXAMPLE]})

    model: str = Field(max_length=255, description="The served model, or `embedding` for whatever is served.")
    input: Annotated[InputText | Annotated[list[InputText], Field(min_length=1, max_length=MAX_REQUEST_INPUTS)], texts_only(TEXTS_ONLY)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=65_536, description="Where the model has vectors of several sizes.")
    user: NoEffect = None

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input

    def commands(self) -> Iterator[dict[str, Any]]:
        """The embed actor's commands, for a part of the inputs each."""
        fields = {"model": self.model} | ({"dimensions": self.dimensions} if self.dimensions else {})
        part = list[str]()
        for text in self.inputs:
            if len(part) == MAX_INPUTS or (part and sum(map(len, part)) + len(text) > MAX_COMMAND_CHARS):
                yield fields | {"inputs": part}
                part = []
            part.append(text)
        yield fields | {"inputs": part}


class Embedding(HttpModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="With the encoding_format `base64`: that of little-endian float32.")


class EmbeddingUsage(HttpModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(HttpModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@router.post("/embeddings", response_model=Embeddings, responses=ERROR_RESPONSES)
async def embed(request: Request, body: EmbeddingRequest) -> Response:
    """Vectors of texts, of unit length where the model is loaded here. 501 where no embedding model is configured."""
    await require_model(request)
    results = await embed_all(request, body)
    return StreamingResponse(response_parts(results, body.encoding_format), media_type="application/json")


async def require_model(request: Request) -> None:
    """Raises HttpProblem(501) without a worker for embeddings, 503 while its model cannot be used."""
    requests = services_of(request).commands.requests
    if await requests.has_consumer(STEP):
        return
    if await requests.has_consumer(EMBED_STATUS_STEP):
        raise HttpProblem(503, "loading", "the embedding model cannot be used now: it is loading, or being restarted", RETRY_AFTER)
    raise HttpProblem(501, "embeddings-unconfigured", NOT_SERVED, NO_RETRY)


async def embed_all(request: Request, body: EmbeddingRequest) -> list[EmbedDone]:
    """The results, in order, one command after the other. The memory of the response is held as soon as the size of a vector is known.

    Raises ReplyFault, ReplyTimeout, PublishError, HttpProblem(413, 503).
    """
    services, results = services_of(request), list[EmbedDone]()
    seconds = request_timeout(request.headers, services.settings)
    until = time.monotonic() + seconds
    for command in body.commands():
        reply = await services.commands.call(request, STEP, command, seconds=max(0.1, until - time.monotonic()))
        results.append(EmbedDone.model_validate(reply))
        if len(results) == 1:
            await hold_vectors(request, len(results[0].vectors[0]) * len(body.inputs), seconds)
    return results


async def hold_vectors(request: Request, size: int, seconds: float) -> None:
    """Raises HttpProblem(413, 503)."""
    budget = services_of(request).file_memory
    if size > budget.share_bytes:
        detail = f"the vectors of these inputs have {size} bytes, a response may hold {budget.share_bytes}: send fewer inputs in a request"
        raise HttpProblem(413, "response-too-large", detail, param="input")
    await hold_bytes(request, budget, size, seconds)


def response_parts(results: list[EmbedDone], encoding_format: str) -> Iterator[bytes]:
    """The body, a few vectors at a time: as text the numbers take many times the memory of their base64."""
    part = '{"object":"list","data":['
    for index, vector in enumerate(vector for done in results for vector in done.vectors):
        separator = "," if index else ""
        part += f'{separator}{{"object":"embedding","index":{index},"embedding":{encode_vector(vector, encoding_format)}}}'
        if len(part) > PART_CHARS:
            yield part.encode()
            part = ""
    tokens = sum(done.prompt_tokens for done in results)
    rest = json.dumps({"model": results[0].model_name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    yield f"{part}],{rest[1:]}".encode()


def encode_vector(vector: str, encoding_format: str) -> str:
    """The JSON of a vector that came as base64."""
    if encoding_format == "base64":
        return json.dumps(vector)
    data = base64.b64decode(vector)
    return json.dumps(struct.unpack(f"<{len(data) // NUMBER_BYTES}f", data))
