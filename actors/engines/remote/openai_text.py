"""Any OpenAI-compatible server as a writer, piece by piece or at once. A server that is away is called again while there is time.

Leaving a reply half read closes its connection; the server stops writing then.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog
from pydantic import SecretStr

from actors.engines.language.requests import EngineState, GenerationChunk, GenerationRequest, PromptTooLong
from actors.engines.remote.openai_vlm import RETRYABLE_STATUSES, response_format
from bus.errors import PermanentError, TemporaryError

INITIAL_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.25, 5.0


DEADLINE_MARGIN_SECONDS = 0.5
"""Before its deadline a request that had no luck is given up, so that its fault still comes in time."""


NUMBER_PATTERN = r"(\d[\d,]*)"


CONTEXT_LENGTH_PATTERN = re.compile(rf"maximum (?:context|model) length (?:is|of) {NUMBER_PATTERN}", re.IGNORECASE)


PROMPT_LENGTH_PATTERN = re.compile(
    rf"(?:contains?|has|resulted in)[^0-9]{{0,20}}{NUMBER_PATTERN} (?:input )?(?:tokens|characters)", re.IGNORECASE
)


log = structlog.get_logger()


@dataclass(frozen=True)
class ServedModels:
    """What the server serves: the model that is asked, all names, and its context length when it says so."""

    model: str
    names: tuple[str, ...]
    max_model_len: int | None


class OpenAiTextEngine:
    """One server. `wanted`: the model to ask; None takes the first that is served."""

    name = "openai"

    def __init__(self, http: httpx.AsyncClient, model: str | None, retry_seconds: float) -> None:
        self._http, self._requested_model, self._retry_seconds = http, model, retry_seconds
        self._served_models: ServedModels | None = None
        self.generated_tokens, self.last_token_at = 0, None

    generated_tokens: int
    last_token_at: float | None

    async def ready(self) -> str:
        return (await self.served_models()).model

    async def served_models(self) -> ServedModels:
        """Raises TemporaryError when the server does not answer or serves nothing yet."""
        if self._served_models is None:
            cards = (await self._call("GET", "models", None)).json().get("data", [])
            names = tuple(str(card["id"]) for card in cards)
            if not names:
                raise TemporaryError("the server serves no model yet", code="server-not-ready")
            if self._requested_model and self._requested_model not in names:
                log.warning("server.other_model", wanted=self._requested_model, taken=names[0])
            chosen = self._requested_model if self._requested_model in names else names[0]
            self._served_models = ServedModels(chosen or names[0], names, next((card.get("max_model_len") for card in cards), None))
        return self._served_models

    async def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncGenerator[GenerationChunk]:
        """The request is made again until the first piece is here; from then on a failure is the caller's to know of."""
        until = time.monotonic() + self._time_budget(deadline)
        pause = INITIAL_RETRY_SECONDS
        while True:
            begun = False
            try:
                async with aclosing(self._attempt(request, max(0.1, until - time.monotonic()))) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except TemporaryError as error:
                self._served_models = None
                wait = max(pause, error.delay or 0)
                if begun or time.monotonic() + wait > until:
                    raise
                log.warning("server.again", wait_seconds=wait, cause=str(error)[:200])
            await asyncio.sleep(wait)
            pause = min(2 * pause, MAX_RETRY_SECONDS)

    def _time_budget(self, deadline: datetime | None) -> float:
        left = (deadline - datetime.now(UTC)).total_seconds() - DEADLINE_MARGIN_SECONDS if deadline else self._retry_seconds
        return max(0.0, min(left, self._retry_seconds))

    async def _attempt(self, request: GenerationRequest, seconds: float) -> AsyncGenerator[GenerationChunk]:
        served = await self.served_models()
        if request.lora and request.lora not in served.names:
            raise PermanentError("lora-unknown", f"the server serves no adapter {request.lora!r}; there are: {', '.join(served.names)}")
        body = build_request_body(request, request.lora or served.model)
        try:
            async with asyncio.timeout(seconds + DEADLINE_MARGIN_SECONDS):
                pieces = self._stream(body) if request.stream else self._complete(body)
                async with aclosing(pieces):
                    async for piece in pieces:
                        self._record_tokens(piece)
                        yield piece
        except PromptTooLong as error:
            raise await self._with_exact_length(error, body) from None
        except TimeoutError:
            raise TemporaryError(f"the model server did not finish within {seconds:g} s", code="server-slow") from None

    def _record_tokens(self, chunk: GenerationChunk) -> None:
        self.generated_tokens += 1 if not chunk.finish_reason else 0
        self.last_token_at = time.time()

    async def _complete(self, body: dict[str, Any]) -> AsyncGenerator[GenerationChunk]:
        said = (await self._call("POST", "chat/completions", body)).json()
        choice, used = said["choices"][0], said.get("usage") or {}
        text = str(choice["message"].get("content") or "")
        self.generated_tokens += int(used.get("completion_tokens", 0))
        yield GenerationChunk(text, int(used.get("completion_tokens", 0)), finish_reason(choice), int(used.get("prompt_tokens", 0)))

    async def _stream(self, body: dict[str, Any]) -> AsyncGenerator[GenerationChunk]:
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        tokens = 0
        ended: dict[str, Any] | None = None
        used: dict[str, Any] = {}
        try:
            async with self._http.stream("POST", "chat/completions", json=body) as answer:
                await raise_for_status(answer)
                async for said in sse_events(answer):
                    used = said.get("usage") or used
                    for choice in said.get("choices", []):
                        ended = choice if choice.get("finish_reason") else ended
                        if text := (choice.get("delta") or {}).get("content"):
                            tokens += 1
                            yield GenerationChunk(text, tokens)
        except httpx.HTTPError as error:
            raise connection_failed(self._http, error) from error
        if ended is None:
            raise TemporaryError("the model server broke off in the middle of its answer", code="server-failed")
        yield GenerationChunk("", int(used.get("completion_tokens", tokens)), finish_reason(ended), int(used.get("prompt_tokens", 0)))

    async def _call(self, method: str, path: str, body: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise connection_failed(self._http, error) from error
        await raise_for_status(answer)
        return answer

    async def _with_exact_length(self, error: PromptTooLong, body: dict[str, Any]) -> PromptTooLong:
        """With the prompt's true length, where the server tells it; its refusal knows only a lower bound."""
        counted = await self.count_tokens(body["messages"])
        return PromptTooLong(*counted) if counted else error

    async def count_tokens(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        """vLLM counts for us; other servers do not."""
        served = await self.served_models()
        if served.max_model_len is None:
            return None
        question = {"model": served.model, "messages": messages, "add_generation_prompt": True}
        try:
            counted = (await self._http.post(self._server_url("tokenize"), json=question)).json()
            return int(counted["count"]), int(counted.get("max_model_len") or served.max_model_len)
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    def _server_url(self, path: str) -> str:
        """vLLM's own routes stand beside `/v1`."""
        return f"{str(self._http.base_url).rstrip('/').removesuffix('/v1')}/{path}"

    async def state(self) -> EngineState:
        """What the server says of itself, where it is a vLLM; else what was counted here."""
        served = await self.served_models()
        try:
            metrics = await self._http.get(self._server_url("metrics"))
            said = parse_metrics(metrics.text) if metrics.status_code == 200 else {}
        except httpx.HTTPError:
            said = {}
        return EngineState(
            running=int(said.get("vllm:num_requests_running", 0)),
            waiting=int(said.get("vllm:num_requests_waiting", 0)),
            generated_tokens=int(said.get("vllm:generation_tokens_total", self.generated_tokens)),
            last_token_at=self.last_token_at,
            max_model_len=served.max_model_len,
            loras=tuple(name for name in served.names if name != served.model),
            config={"model": served.model} | ({"max_model_len": served.max_model_len} if served.max_model_len else {}),
        )


def build_request_body(request: GenerationRequest, model: str) -> dict[str, Any]:
    """The request. What is not one of OpenAI's own parameters is sent only where it says something."""
    body: dict[str, Any] = {
        "model": model,
        "messages": request.messages,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
    }
    if request.schema is not None:
        body |= {"response_format": response_format(json.dumps(request.schema))}
    chosen = {
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "stop": list(request.stop),
        "seed": request.seed,
        "repetition_penalty": request.repetition_penalty if request.repetition_penalty != 1 else None,
    }
    return body | {name: value for name, value in chosen.items() if value or (value == 0 and name == "seed")}


async def sse_events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events. Raises TemporaryError when the server says in one that it failed."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        said: dict[str, Any] = json.loads(data)
        if "error" in said:
            raise TemporaryError(f"the model server failed: {str(said['error'])[:500]}", code="server-failed")
        yield said


def finish_reason(choice: dict[str, Any]) -> Any:
    return "length" if choice.get("finish_reason") == "length" else "stop"


async def raise_for_status(response: httpx.Response) -> None:
    """Raises PromptTooLong, PermanentError("server-refused"), TemporaryError."""
    if response.status_code == 200:
        return
    said = (await response.aread()).decode(errors="replace")[:2000]
    if response.status_code >= 500 or response.status_code in RETRYABLE_STATUSES:
        after = response.headers.get("Retry-After", "")
        delay = float(after) if after.isdigit() else None
        raise TemporaryError(f"the model server answered {response.status_code}: {said[:500]}", code="server-failed", delay=delay)
    if limit := CONTEXT_LENGTH_PATTERN.search(said):
        prompt = PROMPT_LENGTH_PATTERN.search(said, limit.end())
        raise PromptTooLong(parse_number(prompt), parse_number(limit))
    raise PermanentError("server-refused", f"the model server answered {response.status_code}: {said[:500]}")


def parse_number(match: "re.Match[str] | None") -> int:
    return int(match[1].replace(",", "")) if match else 0


def connection_failed(http: httpx.AsyncClient, error: Exception) -> TemporaryError:
    return TemporaryError(f"the model server at {http.base_url} did not answer: {error!r}", code="server-away", delay=None)


@asynccontextmanager
async def open_openai_text_engine(
    server_url: str | None, api_key: SecretStr | None, model: str | None, retry_seconds: float
) -> AsyncIterator[OpenAiTextEngine]:
    """Nothing is called before the first request."""
    if not server_url:
        raise PermanentError("server-unnamed", "the engine `openai` needs VLLM_SERVER_URL, such as http://localhost:8000/v1")
    headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    waits = httpx.Timeout(retry_seconds, connect=10)
    async with httpx.AsyncClient(base_url=f"{server_url.rstrip('/')}/", headers=headers, timeout=waits, limits=limits) as http:
        yield OpenAiTextEngine(http, model, retry_seconds)


METRIC_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)


def parse_metrics(page: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in METRIC_LINE.findall(page):
        try:
            found[name] = found.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return found
