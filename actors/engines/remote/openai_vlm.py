"""Any OpenAI-compatible server as an engine: chat completions, with a picture as a data URL, the form kept by `response_format`.

A server that cannot constrain is asked again without the schema; its answer then says that nothing constrained it.
"""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog
from pydantic import SecretStr

from actors.engines.language.requests import VlmRequest, VlmResponse
from bus.errors import PermanentError, TemporaryError

RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})

log = structlog.get_logger()


class OpenAiVlm:
    """One server and the model asked of it."""

    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http, self._model = http, model
        self._served_model: str | None = None
        self._supports_schema = True

    async def generate(self, request: VlmRequest, *, deadline: datetime | None = None) -> VlmResponse:
        """Raises PermanentError("server-refused"), TemporaryError when the server is away, busy or fails."""
        body = build_request_body(request, await self.served_model())
        if request.schema and self._supports_schema:
            answer = await self._post(body | {"response_format": response_format(request.schema)}, deadline, may_refuse=True)
            if answer is not None:
                return parse_response(answer, constrained=True)
            self._supports_schema = False
            log.warning(
                "server.unconstrained",
                meaning="it refuses response_format json_schema: verdicts are read from free text and marked as repaired",
            )
        answer = await self._post(body, deadline)
        assert answer is not None
        return parse_response(answer, constrained=False)

    async def served_model(self) -> str:
        """The model as named, when the server has it; else the first that it serves. Raises TemporaryError when it does not answer."""
        if self._served_model is None:
            served = [str(entry["id"]) for entry in (await self._call("GET", "models", None)).json().get("data", [])]
            if not served:
                raise TemporaryError("the server serves no model yet", code="server-not-ready")
            self._served_model = self._model if self._model in served else served[0]
            if self._served_model != self._model:
                log.warning("server.other_model", wanted=self._model, taken=self._served_model)
        return self._served_model

    async def unavailable_reason(self) -> str | None:
        """Why a question would not be answered now. Asks the server."""
        try:
            await self._call("GET", "models", None, seconds=2.0)
        except (TemporaryError, PermanentError) as error:
            return str(error)
        return None

    def snapshot(self) -> dict[str, Any]:
        """The server counts for itself."""
        return {}

    async def _post(self, body: dict[str, Any], deadline: datetime | None, *, may_refuse: bool = False) -> dict[str, Any] | None:
        """The server's answer; None where it refuses the schema and may."""
        left = (deadline - datetime.now(UTC)).total_seconds() if deadline else None
        answer = await self._call("POST", "chat/completions", body, seconds=left, may_refuse=may_refuse)
        if answer.status_code in (400, 422, 501):
            return None
        said: dict[str, Any] = answer.json()
        return said

    async def _call(self, method: str, path: str, body: Any, *, seconds: float | None = None, may_refuse: bool = False) -> httpx.Response:
        wait = httpx.USE_CLIENT_DEFAULT if seconds is None else max(0.1, seconds)
        try:
            answer = await self._http.request(method, path, json=body, timeout=wait)
        except httpx.HTTPError as error:
            raise TemporaryError(f"the model server at {self._http.base_url} did not answer: {error!r}", code="server-away") from error
        status, said = answer.status_code, answer.text[:500]
        if (
            status in (400, 422, 501)
            and may_refuse
            and any(word in said for word in ("response_format", "json_schema", "schema", "guided", "structured"))
        ):
            return answer
        if status >= 500 or status in RETRYABLE_STATUSES:
            raise TemporaryError(f"the model server answered {status}: {said}", code="server-failed", delay=retry_after(answer))
        if status != 200:
            raise PermanentError("server-refused", f"the model server answered {status}: {said}")
        return answer


def retry_after(response: httpx.Response) -> float | None:
    after = response.headers.get("Retry-After", "")
    return float(after) if after.isdigit() else None


def build_request_body(request: VlmRequest, model: str) -> dict[str, Any]:
    """The request, greedy. Room for the longest answer that the schema admits: a server cannot be told to come to an end."""
    text = {"type": "text", "text": request.text}
    picture = {"type": "image_url", "image_url": {"url": data_url(request.image)}} if request.image else None
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": [picture, text] if picture else request.text}],
        "max_tokens": max(request.max_new_tokens, request.max_answer_bytes),
        "temperature": 0,
    }
    # Not one of OpenAI's own parameters, and its default elsewhere.
    return body | ({"repetition_penalty": request.repetition_penalty} if request.repetition_penalty != 1 else {})


def data_url(image: bytes) -> str:
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def response_format(schema: str) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "verdict", "schema": json.loads(schema), "strict": True}}


def parse_response(body: dict[str, Any], *, constrained: bool) -> VlmResponse:
    """Raises TemporaryError when the answer has no text in it."""
    try:
        choice = body["choices"][0]
        text = choice["message"]["content"]
        used = body.get("usage") or {}
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        counted = int(used.get("prompt_tokens", 0)), int(used.get("completion_tokens", 0))
        return VlmResponse(str(text or "").strip(), finish, str(body.get("model", "")), *counted, constrained=constrained)  # type: ignore[arg-type]
    except (KeyError, IndexError, TypeError) as error:
        raise TemporaryError(f"the model server's answer is no chat completion: {error!r}", code="server-failed") from error


@asynccontextmanager
async def open_openai_vlm(base_url: str | None, api_key: SecretStr | None, model: str, request_seconds: float) -> AsyncIterator[OpenAiVlm]:
    """Nothing is called before the first question."""
    if not base_url:
        raise PermanentError("server-unnamed", "the engine `openai` needs VLM_BASE_URL, such as http://localhost:8000/v1")
    headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
    async with httpx.AsyncClient(
        base_url=f"{base_url.rstrip('/')}/", headers=headers, timeout=httpx.Timeout(request_seconds, connect=10)
    ) as http:
        yield OpenAiVlm(http, model)
