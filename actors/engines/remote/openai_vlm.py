"""An OpenAI-compatible server as vision-language engine: chat completions, the image as a data URL, the schema as `response_format`.

A server that rejects the schema gets the request again without it; the response is then not `constrained`.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog
from pydantic import SecretStr

from actors.engines.language.requests import VlmRequest, VlmResponse
from actors.engines.remote.answers import choice_text, finish_reason, first_choice, repair_surrogates, token_counts
from actors.engines.remote.openai_client import (
    open_client,
    parse_completion,
    parsing_answer,
    response_format,
    send_bounded,
    status_error,
)
from actors.engines.remote.parameters import LEARNED_SECONDS, ServerParameters, parse_profile
from actors.engines.remote.served_models import read_models
from bus.errors import PermanentError, TemporaryError

DEADLINE_MARGIN_SECONDS = 0.5
SCHEMA_REJECTIONS = frozenset({"json-unsupported", "schema-refused"})
CONNECTION_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)

log = structlog.get_logger()


class OpenAiVlm:
    """One server, and the model that is requested from it."""

    def __init__(self, http: httpx.AsyncClient, model: str, parameters: ServerParameters | None = None) -> None:
        self._http, self._model, self._parameters = http, model, parameters or ServerParameters()
        self._served_model: str | None = None
        self._schema_rejected_until = 0.0

    async def generate(self, request: VlmRequest, *, deadline: datetime | None = None) -> VlmResponse:
        """Raises PermanentError("server-refused" · "content-filtered"), TemporaryError when the server is unavailable, busy or fails."""
        body = build_request_body(request, await self.served_model())
        rejection = ""
        if request.schema and time.monotonic() >= self._schema_rejected_until:
            try:
                with_schema = body | {"response_format": response_format(request.schema)}
                return await self._complete(with_schema, request, deadline, constrained=True)
            except PermanentError as error:
                if error.code not in SCHEMA_REJECTIONS:
                    raise
                rejection = error.code
        response = await self._complete(body, request, deadline, constrained=False)
        if rejection == "json-unsupported":  # what one schema lacks is no reason to send no other
            self._schema_rejected_until = time.monotonic() + LEARNED_SECONDS
            log.warning(
                "server.unconstrained",
                meaning="it rejects response_format json_schema: verdicts are parsed from free text and marked as repaired",
            )
        return response

    async def served_model(self) -> str:
        """The requested model if the server has it, else the first that it serves. Raises TemporaryError when it does not answer."""
        if self._served_model is None:
            response = await self._send("GET", "models", None)
            self._served_model = read_models(response, self._model, setting="VLM_MODEL").model
        return self._served_model

    async def unavailable_reason(self) -> str | None:
        """Why a request would fail now; None when it would not. Calls the server."""
        try:
            await self.check()
        except (TemporaryError, PermanentError) as error:
            return str(error)
        return None

    async def check(self) -> None:
        """Raises TemporaryError, PermanentError when the server does not answer, or has no model yet."""
        read_models(await self._send("GET", "models", None, seconds=2.0), self._model, setting="VLM_MODEL")

    def snapshot(self) -> dict[str, Any]:
        """No metrics: the server has its own."""
        return {}

    async def _complete(self, body: dict[str, Any], request: VlmRequest, deadline: datetime | None, *, constrained: bool) -> VlmResponse:
        """Its requests, however many the server's refusals make, end with the deadline; without one, in the time for one request."""
        seconds = max(0.1, (deadline - datetime.now(UTC)).total_seconds()) if deadline else None
        total = DEADLINE_MARGIN_SECONDS + (seconds or self._http.timeout.read or LEARNED_SECONDS)

        async def send(sent: dict[str, Any]) -> httpx.Response:
            response = await self._send("POST", "chat/completions", sent, seconds=seconds)
            if failure := status_error(response):
                raise failure
            return response

        try:
            async with asyncio.timeout(total):
                completion, _ = await self._parameters.send(body, send)
        except TimeoutError:
            raise TemporaryError(f"the model server did not finish within {total:g} s", code="server-slow") from None
        response = parse_response(parse_completion(completion), constrained=constrained)
        if response.finish_reason == "content_filter" and (request.schema or not response.text):
            raise PermanentError("content-filtered", "the model server filtered its answer, or refused to give one")
        return response

    async def _send(self, method: str, path: str, body: Any, *, seconds: float | None = None) -> httpx.Response:
        timeout = httpx.USE_CLIENT_DEFAULT if seconds is None else seconds
        return await send_bounded(self._http, self._http.build_request(method, path, json=body, timeout=timeout))


def build_request_body(request: VlmRequest, model: str) -> dict[str, Any]:
    """A greedy request. `max_tokens` is enough for the longest answer of the schema: a server has no option to complete it in time."""
    text = {"type": "text", "text": request.text}
    images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in request.images]
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": [*images, text] if images else request.text}],
        "max_tokens": max(request.max_new_tokens, request.max_answer_bytes),
        "temperature": 0,
    }
    # `repetition_penalty` is no parameter of OpenAI; 1 is its default elsewhere.
    return body | ({"repetition_penalty": request.repetition_penalty} if request.repetition_penalty != 1 else {})


def data_url(image: bytes) -> str:
    """The data URL of a PNG or JPEG."""
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def parse_response(body: dict[str, Any], *, constrained: bool) -> VlmResponse:
    """Raises TemporaryError when the body is no chat completion."""
    with parsing_answer():
        choice, counts = first_choice(body), token_counts(body)
        text, reason = repair_surrogates(choice_text(choice)).strip(), finish_reason(choice)
        return VlmResponse(text, reason, str(body.get("model") or ""), counts.prompt, counts.completion, constrained=constrained)


@asynccontextmanager
async def open_openai_vlm(
    base_url: str | None, api_key: SecretStr | None, model: str, request_seconds: float, profile: str = ""
) -> AsyncIterator[OpenAiVlm]:
    """`profile`: which parameters the server takes, as `parse_profile` reads it. Nothing is sent before the first request.

    Raises PermanentError("server-unnamed") without an address.
    """
    async with open_client(base_url, api_key, request_seconds, CONNECTION_LIMITS, setting="VLM_BASE_URL") as http:
        yield OpenAiVlm(http, model, ServerParameters(parse_profile(profile)))
