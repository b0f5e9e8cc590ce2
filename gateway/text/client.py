"""Asking the writing actor: the whole answer, or a stream of it. What goes wrong is said with the source system's words and statuses."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request

from bus.amqp.request_reply import ReplyChunk, ReplyFault, ReplyTimeout
from bus.errors import PublishError
from contracts.text import TextDone
from contracts.wire import Step
from gateway.callers import caller_of
from gateway.deadlines import request_timeout
from gateway.problems import HttpProblem
from gateway.text.uploads import UNSUPPORTED_FILE_TYPE

ENGINE_NOT_READY = "vLLM 엔진이 초기화되지 않았습니다"
VISION_UNAVAILABLE = "멀티모달 기능이 사용할 수 없습니다"
UNAVAILABLE_CODES = frozenset({
    *("loading", "server-away", "server-failed", "server-slow", "server-not-ready", "attempts-exhausted", "deadline-exceeded"),
    *("engine-full", "engine-crash", "out-of-memory", "timeout", "conversation-busy"),
})  # fmt: skip
"""Faults of the model's server or engine: another time it may work."""
INVALID_TEXT_REQUEST_CODES = frozenset({
    *("invalid-message", "message-too-large", "prompt-too-long", "schema-refused", "token-limit-too-small", "lora-missing", "lora-unknown"),
    *("image-unreadable", "image-too-large", "asset-refused", "asset-missing", "asset-too-large", "server-refused"),
    *("document-broken", "document-encrypted", "document-empty", "document-too-long", "document-too-complex"),
})  # fmt: skip
"""Faults that another request would not have."""
TOO_LARGE_CODES = frozenset({"document-too-large"})
RETRY_AFTER = {"Retry-After": "5"}

RequestError = ReplyFault | ReplyTimeout | PublishError
REQUEST_ERRORS = (ReplyFault, ReplyTimeout, PublishError)


async def generate_text(request: Request, command: dict[str, Any]) -> TextDone:
    """The answer, with the time that passed here in its timings. Raises one of FAILURES."""
    begun = time.perf_counter()
    requests = request.app.state.requests
    reply = await requests.request(Step.TEXT.value, command, seconds=request_timeout(request), tenant=caller_of(request))
    return with_endpoint_timing(reply, begun)


async def stream_text(request: Request, command: dict[str, Any]) -> AsyncGenerator[str | TextDone]:
    """What is written as it comes, then the whole. Who leaves before the end stops the work. Raises one of FAILURES."""
    begun = time.perf_counter()
    requests, order = request.app.state.requests, command | {"stream": True}
    pieces: AsyncGenerator[ReplyChunk] = requests.stream(
        Step.TEXT.value, order, seconds=request_timeout(request), tenant=caller_of(request)
    )
    async with aclosing(pieces):
        async for piece in pieces:
            yield with_endpoint_timing(piece.body, begun) if piece.final else str(piece.body["delta"])


def with_endpoint_timing(reply: dict[str, Any], started: float) -> TextDone:
    done = TextDone.model_validate(reply)
    passed = {"endpoint_total_ms": round((time.perf_counter() - started) * 1000, 1)}
    info = done.model_info
    return done.model_copy(update={"model_info": info.model_copy(update={"timings": info.timings.model_copy(update=passed)})})


def to_legacy_problem(error: RequestError, action: str) -> HttpProblem:
    """A failure as the source system says it. `doing`: its word for what failed."""
    if not isinstance(error, ReplyFault):
        return HttpProblem(503, "no reply in time", ENGINE_NOT_READY, RETRY_AFTER)
    code, message = error.fault.code, error.fault.message
    if code in UNAVAILABLE_CODES:
        return HttpProblem(503, code, ENGINE_NOT_READY, RETRY_AFTER)
    if code == "document-unsupported":
        return HttpProblem(400, code, UNSUPPORTED_FILE_TYPE)
    if code in TOO_LARGE_CODES:
        return HttpProblem(413, code, message)
    return HttpProblem(400, code, message) if code in INVALID_TEXT_REQUEST_CODES else HttpProblem(500, code, f"{action}: {message}")
