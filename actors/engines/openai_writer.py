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

from actors.engines.openai_http import BUSY, response_format
from actors.engines.server_metrics import reading
from actors.engines.writing import Draft, PromptTooLong, WriterState, Written
from bus.errors import PermanentError, TemporaryError

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 5.0
MARGIN_SECONDS = 0.5
"""Before its deadline a request that had no luck is given up, so that its fault still comes in time."""
NUMBER = r"(\d[\d,]*)"
CONTEXT = re.compile(rf"maximum (?:context|model) length (?:is|of) {NUMBER}", re.IGNORECASE)
PROMPT = re.compile(rf"(?:contains?|has|resulted in)[^0-9]{{0,20}}{NUMBER} (?:input )?(?:tokens|characters)", re.IGNORECASE)

log = structlog.get_logger()


@dataclass(frozen=True)
class Served:
    """What the server serves: the model that is asked, all names, and its context length when it says so."""

    model: str
    names: tuple[str, ...]
    max_model_len: int | None


class OpenAiWriter:
    """One server. `wanted`: the model to ask; None takes the first that is served."""

    name = "openai"

    def __init__(self, http: httpx.AsyncClient, wanted: str | None, patience_seconds: float) -> None:
        self._http, self._wanted, self._patience = http, wanted, patience_seconds
        self._served: Served | None = None
        self.tokens, self.last_token_at = 0, None

    tokens: int
    last_token_at: float | None

    async def ready(self) -> str:
        return (await self.served()).model

    async def served(self) -> Served:
        """Raises TemporaryError when the server does not answer or serves nothing yet."""
        if self._served is None:
            cards = (await self._answer("GET", "models", None)).json().get("data", [])
            names = tuple(str(card["id"]) for card in cards)
            if not names:
                raise TemporaryError("the server serves no model yet", code="server-not-ready")
            if self._wanted and self._wanted not in names:
                log.warning("server.other_model", wanted=self._wanted, taken=names[0])
            chosen = self._wanted if self._wanted in names else names[0]
            self._served = Served(chosen or names[0], names, next((card.get("max_model_len") for card in cards), None))
        return self._served

    async def write(self, draft: Draft, deadline: datetime | None) -> AsyncGenerator[Written]:
        """The request is made again until the first piece is here; from then on a failure is the caller's to know of."""
        until = time.monotonic() + self._seconds(deadline)
        pause = FIRST_PAUSE_SECONDS
        while True:
            begun = False
            try:
                async with aclosing(self._once(draft, max(0.1, until - time.monotonic()))) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except TemporaryError as error:
                self._served = None
                wait = max(pause, error.delay or 0)
                if begun or time.monotonic() + wait > until:
                    raise
                log.warning("server.again", wait_seconds=wait, cause=str(error)[:200])
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _seconds(self, deadline: datetime | None) -> float:
        left = (deadline - datetime.now(UTC)).total_seconds() - MARGIN_SECONDS if deadline else self._patience
        return max(0.0, min(left, self._patience))

    async def _once(self, draft: Draft, seconds: float) -> AsyncGenerator[Written]:
        served = await self.served()
        if draft.lora and draft.lora not in served.names:
            raise PermanentError("lora-unknown", f"the server serves no adapter {draft.lora!r}; there are: {', '.join(served.names)}")
        body = asked(draft, draft.lora or served.model)
        try:
            async with asyncio.timeout(seconds + MARGIN_SECONDS):
                pieces = self._pieces(body) if draft.piecewise else self._whole(body)
                async with aclosing(pieces):
                    async for piece in pieces:
                        self._count(piece)
                        yield piece
        except PromptTooLong as error:
            raise await self._counted(error, body) from None
        except TimeoutError:
            raise TemporaryError(f"the model server did not finish within {seconds:g} s", code="server-slow") from None

    def _count(self, piece: Written) -> None:
        self.tokens += 1 if not piece.finish else 0
        self.last_token_at = time.time()

    async def _whole(self, body: dict[str, Any]) -> AsyncGenerator[Written]:
        said = (await self._answer("POST", "chat/completions", body)).json()
        choice, used = said["choices"][0], said.get("usage") or {}
        text = str(choice["message"].get("content") or "")
        self.tokens += int(used.get("completion_tokens", 0))
        yield Written(text, int(used.get("completion_tokens", 0)), finish(choice), int(used.get("prompt_tokens", 0)))

    async def _pieces(self, body: dict[str, Any]) -> AsyncGenerator[Written]:
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        tokens = 0
        ended: dict[str, Any] | None = None
        used: dict[str, Any] = {}
        try:
            async with self._http.stream("POST", "chat/completions", json=body) as answer:
                await check(answer)
                async for said in events(answer):
                    used = said.get("usage") or used
                    for choice in said.get("choices", []):
                        ended = choice if choice.get("finish_reason") else ended
                        if text := (choice.get("delta") or {}).get("content"):
                            tokens += 1
                            yield Written(text, tokens)
        except httpx.HTTPError as error:
            raise away(self._http, error) from error
        if ended is None:
            raise TemporaryError("the model server broke off in the middle of its answer", code="server-failed")
        yield Written("", int(used.get("completion_tokens", tokens)), finish(ended), int(used.get("prompt_tokens", 0)))

    async def _answer(self, method: str, path: str, body: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise away(self._http, error) from error
        await check(answer)
        return answer

    async def _counted(self, error: PromptTooLong, body: dict[str, Any]) -> PromptTooLong:
        """With the prompt's true length, where the server tells it; its refusal knows only a lower bound."""
        counted = await self.count(body["messages"])
        return PromptTooLong(*counted) if counted else error

    async def count(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        """vLLM counts for us; other servers do not."""
        served = await self.served()
        if served.max_model_len is None:
            return None
        question = {"model": served.model, "messages": messages, "add_generation_prompt": True}
        try:
            counted = (await self._http.post(self._root("tokenize"), json=question)).json()
            return int(counted["count"]), int(counted.get("max_model_len") or served.max_model_len)
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    def _root(self, path: str) -> str:
        """vLLM's own routes stand beside `/v1`."""
        return f"{str(self._http.base_url).rstrip('/').removesuffix('/v1')}/{path}"

    async def state(self) -> WriterState:
        """What the server says of itself, where it is a vLLM; else what was counted here."""
        served = await self.served()
        try:
            metrics = await self._http.get(self._root("metrics"))
            said = reading(metrics.text) if metrics.status_code == 200 else {}
        except httpx.HTTPError:
            said = {}
        return WriterState(
            running=int(said.get("vllm:num_requests_running", 0)),
            waiting=int(said.get("vllm:num_requests_waiting", 0)),
            tokens=int(said.get("vllm:generation_tokens_total", self.tokens)),
            last_token_at=self.last_token_at,
            max_model_len=served.max_model_len,
            loras=tuple(name for name in served.names if name != served.model),
            config={"model": served.model} | ({"max_model_len": served.max_model_len} if served.max_model_len else {}),
        )


def asked(draft: Draft, model: str) -> dict[str, Any]:
    """The request. What is not one of OpenAI's own parameters is sent only where it says something."""
    body: dict[str, Any] = {
        "model": model,
        "messages": draft.messages,
        "max_tokens": draft.max_tokens,
        "temperature": draft.temperature,
        "top_p": draft.top_p,
    }
    if draft.schema is not None:
        body |= {"response_format": response_format(json.dumps(draft.schema))}
    chosen = {
        "presence_penalty": draft.presence_penalty,
        "frequency_penalty": draft.frequency_penalty,
        "stop": list(draft.stop),
        "seed": draft.seed,
        "repetition_penalty": draft.repetition_penalty if draft.repetition_penalty != 1 else None,
    }
    return body | {name: value for name, value in chosen.items() if value or (value == 0 and name == "seed")}


async def events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events. Raises TemporaryError when the server says in one that it failed."""
    async for line in answer.aiter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        said: dict[str, Any] = json.loads(data)
        if "error" in said:
            raise TemporaryError(f"the model server failed: {str(said['error'])[:500]}", code="server-failed")
        yield said


def finish(choice: dict[str, Any]) -> Any:
    return "length" if choice.get("finish_reason") == "length" else "stop"


async def check(answer: httpx.Response) -> None:
    """Raises PromptTooLong, PermanentError("server-refused"), TemporaryError."""
    if answer.status_code == 200:
        return
    said = (await answer.aread()).decode(errors="replace")[:2000]
    if answer.status_code >= 500 or answer.status_code in BUSY:
        after = answer.headers.get("Retry-After", "")
        delay = float(after) if after.isdigit() else None
        raise TemporaryError(f"the model server answered {answer.status_code}: {said[:500]}", code="server-failed", delay=delay)
    if limit := CONTEXT.search(said):
        prompt = PROMPT.search(said, limit.end())
        raise PromptTooLong(number(prompt), number(limit))
    raise PermanentError("server-refused", f"the model server answered {answer.status_code}: {said[:500]}")


def number(found: "re.Match[str] | None") -> int:
    return int(found[1].replace(",", "")) if found else 0


def away(http: httpx.AsyncClient, error: Exception) -> TemporaryError:
    return TemporaryError(f"the model server at {http.base_url} did not answer: {error!r}", code="server-away", delay=None)


@asynccontextmanager
async def open_openai_writer(
    server_url: str | None, api_key: SecretStr | None, model: str | None, patience_seconds: float
) -> AsyncIterator[OpenAiWriter]:
    """Nothing is called before the first request."""
    if not server_url:
        raise PermanentError("server-unnamed", "the engine `openai` needs VLLM_SERVER_URL, such as http://localhost:8000/v1")
    headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    waits = httpx.Timeout(patience_seconds, connect=10)
    async with httpx.AsyncClient(base_url=f"{server_url.rstrip('/')}/", headers=headers, timeout=waits, limits=limits) as http:
        yield OpenAiWriter(http, model, patience_seconds)
