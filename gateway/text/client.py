"""Text generation: the whole result or a stream of it, and its failures with the statuses and texts of the CloudLLM API."""

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from fastapi import Request

from bus.amqp.request_reply import ReplyFault
from contracts.text import TextDelta, TextDone, TokenLogprob
from contracts.wire import Step
from gateway.json_body import run_parser
from gateway.problems import RETRY_AFTER, HttpProblem, RequestError
from gateway.services import services_of
from gateway.text.uploads import UNSUPPORTED_FILE_TYPE

ENGINE_NOT_READY = "vLLM 엔진이 초기화되지 않았습니다"
VISION_UNSUPPORTED = "vLLM의 멀티모달 지원이 안정화되면 구현 예정"
UNAVAILABLE_CODES = frozenset({
    *("loading", "server-away", "server-failed", "server-slow", "server-not-ready", "attempts-exhausted", "deadline-exceeded"),
    *("engine-full", "engine-crash", "out-of-memory", "device-failed", "timeout", "conversation-busy", "decoder-unavailable"),
})  # fmt: skip
"""Faults of the model server or engine: a retry may succeed."""
INVALID_TEXT_REQUEST_CODES = frozenset({
    *("invalid-message", "message-too-large", "prompt-too-long", "schema-refused", "token-limit-too-small", "lora-missing", "lora-unknown"),
    *("json-incomplete", "prompt-unreadable", "content-filtered", "parameter-unsupported", "tools-refused", "tool-call-missing"),
    *("image-unreadable", "image-too-large", "asset-refused", "asset-forbidden", "asset-missing", "asset-too-large", "server-refused"),
    *("document-broken", "document-encrypted", "document-empty", "document-too-long", "document-too-complex"),
})  # fmt: skip
"""Faults of the request itself: a retry fails again."""
LOGPROB_BYTES = 2000
"""The memory of a log probability: its value in a reply, in a model, and in the response."""
TOO_LARGE_CODES = frozenset({"document-too-large"})
UNSUPPORTED_CODES = frozenset({"vision-unsupported", "json-unsupported"})
"""What the served model or its server cannot do: images, constrained decoding. A 501."""


async def lacks_vision(request: Request) -> bool:
    """Whether the served model is known to read no images; ask before an image is stored.

    A model that was replaced since the last status refuses the image itself, with the fault `vision-unsupported`.
    """
    status = (await services_of(request).text_status.latest()).status
    return status is not None and status.vision is False


async def generate_text(request: Request, command: dict[str, Any], seconds: float | None = None) -> TextDone:
    """The result within `seconds` (default: `request_timeout`), with the time spent in the gateway among its timings.

    Raises REQUEST_ERRORS, HttpProblem(400) for a client's timeout that is none.
    """
    started = time.perf_counter()
    reply = await services_of(request).commands.call(request, Step.TEXT.value, command, seconds=seconds)
    return await run_parser(read_result, reply, started, size=reply_logprob_bytes(reply))


async def stream_text(request: Request, command: dict[str, Any]) -> AsyncGenerator[TextDelta | TextDone]:
    """Each delta, then the result. Closing the generator before its end cancels the work. Raises REQUEST_ERRORS."""
    started = time.perf_counter()
    async with aclosing(services_of(request).commands.stream(request, Step.TEXT.value, command | {"stream": True})) as chunks:
        async for chunk in chunks:
            if chunk.final:
                yield await run_parser(read_result, chunk.body, started, size=reply_logprob_bytes(chunk.body))
            else:
                yield TextDelta.model_validate(chunk.body)


def answers_in(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a reply that may have log probabilities: itself, and its answers."""
    return [reply, *(reply.get("answers") or ())]


def reply_logprob_bytes(reply: dict[str, Any]) -> int:
    """The same as `logprob_bytes` of a reply that was not validated."""
    lists = (answer.get("logprobs") or () for answer in answers_in(reply))
    return sum(1 + len(token.get("top") or ()) for tokens in lists for token in tokens) * LOGPROB_BYTES


def logprob_bytes(results: Iterable[TextDone]) -> int:
    """The memory of their log probabilities and of the response that has them, about."""
    lists = [tokens or () for done in results for tokens in (done.logprobs, *(answer.logprobs for answer in done.answers))]
    return sum(1 + len(token.top) for tokens in lists for token in tokens) * LOGPROB_BYTES


def read_result(reply: dict[str, Any], started: float) -> TextDone:
    """Log probabilities are read one token at a time, so that other threads get their turn. Raises ValidationError."""
    logprobs = [
        tokens and [TokenLogprob.model_validate(token) for token in tokens]
        for tokens in (answer.get("logprobs") for answer in answers_in(reply))
    ]
    shorn = [{name: value for name, value in answer.items() if name != "logprobs"} for answer in answers_in(reply)]
    done = with_endpoint_timing(shorn[0] | {"answers": shorn[1:]}, started)
    answers = [answer.model_copy(update={"logprobs": tokens}) for answer, tokens in zip(done.answers, logprobs[1:], strict=True)]
    return done.model_copy(update={"logprobs": logprobs[0], "answers": answers})


def with_endpoint_timing(reply: dict[str, Any], started: float) -> TextDone:
    done = TextDone.model_validate(reply)
    timing = {"endpoint_total_ms": round((time.perf_counter() - started) * 1000, 1)}
    info = done.model_info
    return done.model_copy(update={"model_info": info.model_copy(update={"timings": info.timings.model_copy(update=timing)})})


def to_legacy_problem(error: RequestError, action: str) -> HttpProblem:
    """A failure as the CloudLLM API reports it. `action` names the failed operation in the detail of an unknown fault."""
    if not isinstance(error, ReplyFault):
        return HttpProblem(503, "no reply in time", ENGINE_NOT_READY, RETRY_AFTER)
    code, message = error.fault.code, error.fault.message
    if code in UNAVAILABLE_CODES:
        return HttpProblem(503, code, ENGINE_NOT_READY, RETRY_AFTER)
    if code == "document-unsupported":
        return HttpProblem(400, code, UNSUPPORTED_FILE_TYPE)
    if code in UNSUPPORTED_CODES:
        return HttpProblem(501, code, VISION_UNSUPPORTED if code == "vision-unsupported" else message)
    if code in TOO_LARGE_CODES:
        return HttpProblem(413, code, message)
    return HttpProblem(400, code, message) if code in INVALID_TEXT_REQUEST_CODES else HttpProblem(500, code, f"{action}: {message}")
