"""Text generation: the whole result or a stream of it, and its failures with the statuses and texts of the CloudLLM API."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request

from bus.amqp.request_reply import ReplyFault
from contracts.text import TextDelta, TextDone
from contracts.wire import Step
from gateway.problems import RETRY_AFTER, HttpProblem, RequestError
from gateway.services import services_of
from gateway.text.uploads import UNSUPPORTED_FILE_TYPE

ENGINE_NOT_READY = "vLLM 엔진이 초기화되지 않았습니다"
VISION_UNSUPPORTED = "vLLM의 멀티모달 지원이 안정화되면 구현 예정"
UNAVAILABLE_CODES = frozenset({
    *("loading", "server-away", "server-failed", "server-slow", "server-not-ready", "attempts-exhausted", "deadline-exceeded"),
    *("engine-full", "engine-crash", "out-of-memory", "device-failed", "timeout", "conversation-busy"),
})  # fmt: skip
"""Faults of the model server or engine: a retry may succeed."""
INVALID_TEXT_REQUEST_CODES = frozenset({
    *("invalid-message", "message-too-large", "prompt-too-long", "schema-refused", "token-limit-too-small", "lora-missing", "lora-unknown"),
    *("json-incomplete", "prompt-unreadable", "content-filtered", "parameter-unsupported", "tools-refused", "tool-call-missing"),
    *("image-unreadable", "image-too-large", "asset-refused", "asset-forbidden", "asset-missing", "asset-too-large", "server-refused"),
    *("document-broken", "document-encrypted", "document-empty", "document-too-long", "document-too-complex"),
})  # fmt: skip
"""Faults of the request itself: a retry fails again."""
TOO_LARGE_CODES = frozenset({"document-too-large"})
UNSUPPORTED_CODES = frozenset({"vision-unsupported", "json-unsupported"})
"""What the served model or its server cannot do: images, constrained decoding. A 501."""


async def lacks_vision(request: Request) -> bool:
    """Whether the served model is known to read no images; ask before an image is stored.

    A model that was replaced since the last status refuses the image itself, with the fault `vision-unsupported`.
    """
    status = (await services_of(request).text_status.latest()).status
    return status is not None and status.vision is False


async def generate_text(request: Request, command: dict[str, Any]) -> TextDone:
    """The result, with the time spent in the gateway among its timings. Raises REQUEST_ERRORS."""
    started = time.perf_counter()
    reply = await services_of(request).commands.call(request, Step.TEXT.value, command)
    return with_endpoint_timing(reply, started)


async def stream_text(request: Request, command: dict[str, Any]) -> AsyncGenerator[TextDelta | TextDone]:
    """Each delta, then the result. Closing the generator before its end cancels the work. Raises REQUEST_ERRORS."""
    started = time.perf_counter()
    async with aclosing(services_of(request).commands.stream(request, Step.TEXT.value, command | {"stream": True})) as chunks:
        async for chunk in chunks:
            yield with_endpoint_timing(chunk.body, started) if chunk.final else TextDelta.model_validate(chunk.body)


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
