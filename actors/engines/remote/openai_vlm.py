"""An OpenAI-compatible server as vision-language engine: chat completions, the image as a data URL, the schema as `response_format`.

A server that rejects the schema gets the request again without it; the response is then not `constrained`.
"""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog
from pydantic import SecretStr

from actors.engines.language.requests import VlmRequest, VlmResponse
from actors.engines.remote.openai_client import (
    choose_model,
    connection_error,
    finish_reason,
    open_client,
    parsing_answer,
    response_format,
    status_error,
)
from bus.errors import PermanentError, TemporaryError

SCHEMA_REJECTED_STATUSES = (400, 422, 501)
SCHEMA_REJECTED_WORDS = ("response_format", "json_schema", "schema", "guided", "structured")
CONNECTION_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)

log = structlog.get_logger()


class OpenAiVlm:
    """One server, and the model that is requested from it."""

    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http, self._model = http, model
        self._served_model: str | None = None
        self._supports_schema = True

    async def generate(self, request: VlmRequest, *, deadline: datetime | None = None) -> VlmResponse:
        """Raises PermanentError("server-refused"), TemporaryError when the server is unavailable, busy or fails."""
        body = build_request_body(request, await self.served_model())
        if request.schema and self._supports_schema:
            completion = await self._post(body | {"response_format": response_format(request.schema)}, deadline, may_reject_schema=True)
            if completion is not None:
                return parse_response(completion, constrained=True)
            self._supports_schema = False
            log.warning(
                "server.unconstrained",
                meaning="it rejects response_format json_schema: verdicts are parsed from free text and marked as repaired",
            )
        completion = await self._post(body, deadline)
        assert completion is not None
        return parse_response(completion, constrained=False)

    async def served_model(self) -> str:
        """The requested model if the server has it, else the first that it serves. Raises TemporaryError when it does not answer."""
        if self._served_model is None:
            response = await self._call("GET", "models", None)
            with parsing_answer():
                names = [str(model["id"]) for model in response.json().get("data", [])]
            self._served_model = choose_model(self._model, names)
        return self._served_model

    async def unavailable_reason(self) -> str | None:
        """Why a request would fail now; None when it would not. Calls the server."""
        try:
            await self.check()
        except (TemporaryError, PermanentError) as error:
            return str(error)
        return None

    async def check(self) -> None:
        """Raises TemporaryError, PermanentError when the server does not answer."""
        await self._call("GET", "models", None, seconds=2.0)

    def snapshot(self) -> dict[str, Any]:
        """No metrics: the server has its own."""
        return {}

    async def _post(self, body: dict[str, Any], deadline: datetime | None, *, may_reject_schema: bool = False) -> dict[str, Any] | None:
        """The completion; None when the server rejects the schema and may."""
        seconds = (deadline - datetime.now(UTC)).total_seconds() if deadline else None
        response = await self._call("POST", "chat/completions", body, seconds=seconds, may_reject_schema=may_reject_schema)
        if response.status_code in SCHEMA_REJECTED_STATUSES:
            return None
        with parsing_answer():
            completion: dict[str, Any] = response.json()
        return completion

    async def _call(
        self, method: str, path: str, body: Any, *, seconds: float | None = None, may_reject_schema: bool = False
    ) -> httpx.Response:
        timeout = httpx.USE_CLIENT_DEFAULT if seconds is None else max(0.1, seconds)
        try:
            response = await self._http.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise connection_error(self._http, error) from error
        if not (may_reject_schema and rejects_schema(response)) and (failure := status_error(response)):
            raise failure
        return response


def rejects_schema(response: httpx.Response) -> bool:
    return response.status_code in SCHEMA_REJECTED_STATUSES and any(word in response.text[:500] for word in SCHEMA_REJECTED_WORDS)


def build_request_body(request: VlmRequest, model: str) -> dict[str, Any]:
    """A greedy request. `max_tokens` is enough for the longest answer of the schema: a server has no option to complete it in time."""
    text = {"type": "text", "text": request.text}
    image = {"type": "image_url", "image_url": {"url": data_url(request.image)}} if request.image else None
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": [image, text] if image else request.text}],
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
        choice = body["choices"][0]
        text = str(choice["message"]["content"] or "").strip()
        usage = body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        return VlmResponse(text, finish_reason(choice), str(body.get("model", "")), *tokens, constrained=constrained)


@asynccontextmanager
async def open_openai_vlm(base_url: str | None, api_key: SecretStr | None, model: str, request_seconds: float) -> AsyncIterator[OpenAiVlm]:
    """Raises PermanentError("server-unnamed") without an address. Nothing is sent before the first request."""
    async with open_client(base_url, api_key, request_seconds, CONNECTION_LIMITS, setting="VLM_BASE_URL") as http:
        yield OpenAiVlm(http, model)
