"""An OpenAI-compatible server as text engine, streaming or not. Requests are retried while the server is unavailable and time is left.

Closing the chunks early closes the connection, at which the server stops generating.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import httpx
import structlog
from pydantic import SecretStr

from actors.engines.language.answer_text import StopSequences
from actors.engines.language.requests import EngineState, GenerationChunk, GenerationRequest, PromptTooLong
from actors.engines.language.tool_calls import left_out, stop_sequences
from actors.engines.remote.openai_client import (
    ServerRefusal,
    connection_error,
    open_client,
    parse_completion,
    read_bounded,
    send_bounded,
    status_error,
)
from actors.engines.remote.parameters import ServerParameters, parse_profile
from actors.engines.remote.request_bodies import build_request_body, check_prompt
from actors.engines.remote.served_models import ServedModels, read_models
from actors.engines.remote.server_metrics import parse_cache_config, parse_metrics
from actors.engines.remote.streamed_answer import AnswerForm, StreamedAnswer, read_completion
from actors.engines.remote.vision_probe import VISION_SECONDS, reads_images
from bus.errors import PermanentError, TemporaryError
from contracts.text import TokenLogprob

INITIAL_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.25, 5.0
DEADLINE_MARGIN_SECONDS = 0.5
"""A request is given up so long before its deadline, so that its error is still in time."""
CHUNKS_AFTER_STOP = 4
"""A server that ends at a stop sequence reports its usage in one of the next chunks; another one is stopped."""
CONNECTION_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)
NUMBER_PATTERN = r"(\d[\d,]*)"
CONTEXT_LENGTH_PATTERN = re.compile(rf"maximum (?:context|model) length (?:is|of) {NUMBER_PATTERN}", re.IGNORECASE)
PROMPT_LENGTH_PATTERN = re.compile(
    rf"(?:contains?|has|resulted in)[^0-9]{{0,20}}{NUMBER_PATTERN} (?:input )?(?:tokens|characters)", re.IGNORECASE
)

log = structlog.get_logger()


class OpenAiTextEngine:
    """One server. `model`: the requested one; None: the first that is served. `max_model_len`: its context, if it does not report it."""

    name = "openai"
    generated_tokens: int
    last_token_at: float | None

    def __init__(
        self,
        http: httpx.AsyncClient,
        model: str | None,
        retry_seconds: float,
        max_model_len: int | None = None,
        parameters: ServerParameters | None = None,
    ) -> None:
        self._http, self._requested_model, self._retry_seconds, self._max_model_len = http, model, retry_seconds, max_model_len
        self._parameters = parameters or ServerParameters()
        self._served_models: ServedModels | None = None
        self.generated_tokens, self.last_token_at, self.in_flight = 0, None, 0
        self._vision: dict[str, bool | None] = {}
        self._vision_expires: dict[str, float] = {}
        self._vision_lock = asyncio.Lock()
        self._vision_probe: asyncio.Task[bool | None] | None = None

    async def vision(self) -> bool | None:
        """Whether the served model reads images; None: the server's answers do not tell. Asked again after VISION_SECONDS."""
        model = await self.ready()
        async with self._vision_lock:
            if self._vision_is_expired(model):
                self._vision[model] = await reads_images(self._post_completion, model)
                self._vision_expires[model] = time.monotonic() + VISION_SECONDS[self._vision[model]]
                log.info("server.vision", model=model, reads_images=self._vision[model])
        return self._vision[model]

    def _known_vision(self, model: str) -> bool | None:
        """What is known now. A status starts the probe, and does not wait for it."""
        if self._vision_is_expired(model) and (self._vision_probe is None or self._vision_probe.done()):
            self._vision_probe = asyncio.create_task(self.vision())
            self._vision_probe.add_done_callback(log_failed_probe)
        return self._vision.get(model)

    def _vision_is_expired(self, model: str) -> bool:
        return time.monotonic() >= self._vision_expires.get(model, 0.0)

    async def close(self) -> None:
        if self._vision_probe:
            self._vision_probe.cancel()
            await asyncio.gather(self._vision_probe, return_exceptions=True)

    async def _post_completion(self, body: dict[str, Any]) -> httpx.Response:
        """With any status. Raises TemporaryError when there is no answer."""
        last: httpx.Response | None = None

        async def send(sent: dict[str, Any]) -> httpx.Response:
            nonlocal last
            last = await self._send("POST", "chat/completions", sent)
            if isinstance(error := status_error(last), ServerRefusal):
                raise error
            return last

        try:
            return (await self._parameters.send(body, send))[0]
        except ServerRefusal:
            assert last is not None
            return last

    async def ready(self) -> str:
        return (await self.served_models()).model

    async def served_models(self) -> ServedModels:
        """Raises TemporaryError when the server does not answer or serves nothing yet."""
        if self._served_models is None:
            response = await self._send("GET", "models", None)
            self._served_models = read_models(response, self._requested_model, setting="VLLM_MODEL")
        return self._served_models

    async def generate(self, request: GenerationRequest, deadline: datetime | None) -> AsyncGenerator[GenerationChunk]:
        """Retries temporary errors before the first chunk; later ones are raised."""
        until = time.monotonic() + self._time_budget(deadline)
        backoff = INITIAL_RETRY_SECONDS
        while True:
            started = False
            try:
                async with aclosing(self._attempt(request, max(0.1, until - time.monotonic()))) as chunks:
                    async for chunk in chunks:
                        started = True
                        yield chunk
                return
            except TemporaryError as error:
                self._served_models = None
                delay = max(backoff, error.delay or 0)
                if started or time.monotonic() + delay > until:
                    raise
                log.warning("server.retry", delay_seconds=delay, cause=str(error)[:200])
            await asyncio.sleep(delay)
            backoff = min(2 * backoff, MAX_RETRY_SECONDS)

    def _time_budget(self, deadline: datetime | None) -> float:
        seconds = (deadline - datetime.now(UTC)).total_seconds() - DEADLINE_MARGIN_SECONDS if deadline else self._retry_seconds
        return max(0.0, min(seconds, self._retry_seconds))

    async def _attempt(self, request: GenerationRequest, seconds: float) -> AsyncGenerator[GenerationChunk]:
        served = await self.served_models()
        check_prompt(request, served.max_model_len or self._max_model_len)
        if request.lora and served.listed and request.lora not in served.names:
            raise PermanentError("lora-unknown", f"the server serves no adapter {request.lora!r}; it serves {', '.join(served.names)}")
        body = build_request_body(request, request.lora or served.model, by_vllm=served.by_vllm)
        form = AnswerForm.of_request(request)
        self.in_flight += 1
        try:
            async with asyncio.timeout(seconds + DEADLINE_MARGIN_SECONDS):
                async with aclosing(self._stream(body, form) if request.stream else self._complete(body, form)) as chunks:
                    async for chunk in cut_at_stop(chunks, stop_sequences(request)):
                        self._record_tokens(chunk)
                        yield replace(chunk, left_out=(*chunk.left_out, *left_out(request))) if chunk.finish_reason else chunk
        except PromptTooLong as error:
            raise await self._with_exact_length(error, body) from None
        except TimeoutError:
            raise TemporaryError(f"the model server did not finish within {seconds:g} s", code="server-slow") from None
        finally:
            self.in_flight -= 1

    def _record_tokens(self, chunk: GenerationChunk) -> None:
        self.generated_tokens += 1 if not chunk.finish_reason else 0
        self.last_token_at = time.time()

    async def _complete(self, body: dict[str, Any], form: AnswerForm) -> AsyncGenerator[GenerationChunk]:
        async def send(sent: dict[str, Any]) -> httpx.Response:
            return await self._call("POST", route_of(sent), sent)

        response, refused = await self._parameters.send(body, send)
        chunk = read_completion(parse_completion(response), form, refused)
        self.generated_tokens += chunk.completion_tokens
        yield chunk

    async def _stream(self, body: dict[str, Any], form: AnswerForm) -> AsyncGenerator[GenerationChunk]:
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        answer = StreamedAnswer(form)
        response, refused = await self._parameters.send(body, self._open_stream)
        try:
            async with aclosing(answer.reader.events(response.aiter_bytes())) as events:
                async for event in events:
                    if chunk := answer.push(event):
                        yield chunk
        except httpx.HTTPError as error:
            raise connection_error(self._http, error) from error
        finally:
            await response.aclose()
        yield answer.last_chunk(refused)

    async def _open_stream(self, body: dict[str, Any]) -> httpx.Response:
        """The response, whose body is not read yet; the caller closes it."""
        request = self._http.build_request("POST", route_of(body), json=body)
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    raise_for_status(await read_bounded(response))
            except BaseException:
                await response.aclose()
                raise
        except httpx.HTTPError as error:
            raise connection_error(self._http, error) from error
        return response

    async def _send(self, method: str, path: str, body: Any) -> httpx.Response:
        return await send_bounded(self._http, self._http.build_request(method, path, json=body))

    async def _call(self, method: str, path: str, body: Any) -> httpx.Response:
        response = await self._send(method, path, body)
        raise_for_status(response)
        return response

    async def _with_exact_length(self, error: PromptTooLong, body: dict[str, Any]) -> PromptTooLong:
        """The error with the prompt's exact length, if the server counts it; its own message has only a lower bound."""
        counts = await self._count({name: body[name] for name in ("messages", "tools", "prompt") if name in body})
        return PromptTooLong(*counts) if counts else error

    async def count_tokens(self, messages: list[dict[str, Any]]) -> tuple[int, int] | None:
        """Counted by vLLM; None with other servers."""
        return await self._count({"messages": messages})

    async def _count(self, prompt: dict[str, Any]) -> tuple[int, int] | None:
        served = await self.served_models()
        if served.max_model_len is None:
            return None
        chat = {"add_generation_prompt": True} if "messages" in prompt else {}
        try:
            reply = (await self._send("POST", self._server_url("tokenize"), {"model": served.model} | prompt | chat)).json()
            return int(reply["count"]), int(reply.get("max_model_len") or served.max_model_len)
        except (TemporaryError, ValueError, KeyError, TypeError):
            return None

    def _server_url(self, path: str) -> str:
        """A route of vLLM's own, which is outside `/v1`."""
        return f"{str(self._http.base_url).rstrip('/').removesuffix('/v1')}/{path}"

    async def state(self) -> EngineState:
        """The metrics of the server if it is a vLLM, else what was counted here. No server reports its GPU's memory: it is not known."""
        served = await self.served_models()
        try:
            page = await self._send("GET", self._server_url("metrics"), None)
            text = page.text if page.status_code == 200 else ""
        except TemporaryError:
            text = ""
        metrics = parse_metrics(text)
        cache_share = metrics.get("vllm:kv_cache_usage_perc", metrics.get("vllm:gpu_cache_usage_perc"))
        return EngineState(
            running=int(metrics.get("vllm:num_requests_running", self.in_flight)),
            waiting=int(metrics.get("vllm:num_requests_waiting", 0)),
            generated_tokens=int(metrics.get("vllm:generation_tokens_total", self.generated_tokens)),
            last_token_at=self.last_token_at,
            max_model_len=served.max_model_len,
            vision=self._known_vision(served.model),
            loras=tuple(name for name in served.names if name != served.model),
            cache_utilization=None if cache_share is None else round(100 * cache_share, 1),
            config={"model": served.model}
            | ({"max_model_len": served.max_model_len} if served.max_model_len else {})
            | ({"adapted_parameters": adapted} if (adapted := self._parameters.describe(served.model)) else {})
            | parse_cache_config(text),
        )


def route_of(body: dict[str, Any]) -> str:
    return "completions" if "prompt" in body else "chat/completions"


async def cut_at_stop(chunks: AsyncIterator[GenerationChunk], stop: tuple[str, ...]) -> AsyncIterator[GenerationChunk]:
    """The chunks, cut before the first stop sequence also where the server includes it, or does not know stop sequences."""
    sequences, after = StopSequences(stop), 0
    async for chunk in chunks:
        text = sequences.push(chunk.text, ends=chunk.finish_reason is not None)
        ends = chunk.finish_reason is not None or after > CHUNKS_AFTER_STOP
        logprobs = tokens_of(chunk.logprobs, text) if sequences.found else chunk.logprobs
        if ends or (not after and (text or chunk.reasoning or chunk.tool_calls or logprobs)):
            reason = "stop" if sequences.found and ends else chunk.finish_reason
            yield replace(chunk, text=text, logprobs=logprobs, finish_reason=reason)
        if ends:
            return
        after += sequences.found


def tokens_of(logprobs: tuple[TokenLogprob, ...], text: str) -> tuple[TokenLogprob, ...]:
    """Those of the tokens that begin inside `text`, the first part of what they make."""
    begins = accumulate((len(token.text) for token in logprobs), initial=0)
    return tuple(token for token, begin in zip(logprobs, begins, strict=False) if begin < len(text))


def raise_for_status(response: httpx.Response) -> None:
    """Raises PromptTooLong, PermanentError("server-refused"), TemporaryError."""
    if response.status_code == 200:
        return
    text = response.content.decode(errors="replace")[:2000]
    error = status_error(response)
    if isinstance(error, PermanentError) and (limit := CONTEXT_LENGTH_PATTERN.search(text)):
        raise PromptTooLong(parse_number(PROMPT_LENGTH_PATTERN.search(text, limit.end())), parse_number(limit))
    if error:
        raise error


def parse_number(match: "re.Match[str] | None") -> int:
    return int(match[1].replace(",", "")) if match else 0


def log_failed_probe(probe: "asyncio.Task[bool | None]") -> None:
    if not probe.cancelled() and (error := probe.exception()):
        log.warning("server.vision_unknown", cause=str(error)[:200])


@asynccontextmanager
async def open_openai_text_engine(
    server_url: str | None,
    api_key: SecretStr | None,
    model: str | None,
    retry_seconds: float,
    max_model_len: int | None = None,
    profile: str = "",
) -> AsyncIterator[OpenAiTextEngine]:
    """`profile`: which parameters the server takes, as `parse_profile` reads it. Nothing is sent before the first request.

    Raises PermanentError("server-unnamed") without an address.
    """
    async with open_client(server_url, api_key, retry_seconds, CONNECTION_LIMITS, setting="VLLM_SERVER_URL") as http:
        engine = OpenAiTextEngine(http, model, retry_seconds, max_model_len, ServerParameters(parse_profile(profile)))
        try:
            yield engine
        finally:
            await engine.close()
