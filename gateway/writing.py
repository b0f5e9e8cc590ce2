"""Asking the writing actor: the whole answer, or a stream of it. What goes wrong is said with the source system's words and statuses."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request

from bus.errors import PublishError
from bus.request_reply import ReplyFault, ReplyTimeout
from bus.streaming import Piece
from contracts.text import TextDone
from contracts.wire import Step
from gateway.callers import caller_of
from gateway.deadlines import seconds_given
from gateway.problems import Refused
from gateway.uploads import UNSUPPORTED

NOT_READY = "vLLM 엔진이 초기화되지 않았습니다"
NO_PICTURES = "멀티모달 기능이 사용할 수 없습니다"
AWAY = frozenset({
    *("loading", "server-away", "server-failed", "server-slow", "server-not-ready", "attempts-exhausted", "deadline-exceeded"),
    *("engine-full", "engine-crash", "out-of-memory", "timeout", "conversation-busy"),
})  # fmt: skip
"""Faults of the model's server or engine: another time it may work."""
WRITINGS_OWN = frozenset({
    *("invalid-message", "message-too-large", "prompt-too-long", "schema-refused", "token-limit-too-small", "lora-missing", "lora-unknown"),
    *("image-unreadable", "image-too-large", "asset-refused", "asset-missing", "asset-too-large", "server-refused"),
    *("document-broken", "document-encrypted", "document-empty", "document-too-long", "document-too-complex"),
})  # fmt: skip
"""Faults that another request would not have."""
TOO_LARGE = frozenset({"document-too-large"})
RETRY = {"Retry-After": "5"}

Failure = ReplyFault | ReplyTimeout | PublishError
FAILURES = (ReplyFault, ReplyTimeout, PublishError)


async def written(request: Request, command: dict[str, Any]) -> TextDone:
    """The answer, with the time that passed here in its timings. Raises one of FAILURES."""
    begun = time.perf_counter()
    requests = request.app.state.requests
    reply = await requests.request(Step.TEXT.value, command, seconds=seconds_given(request), tenant=caller_of(request))
    return timed(reply, begun)


async def streamed(request: Request, command: dict[str, Any]) -> AsyncGenerator[str | TextDone]:
    """What is written as it comes, then the whole. Who leaves before the end stops the work. Raises one of FAILURES."""
    begun = time.perf_counter()
    requests, order = request.app.state.requests, command | {"stream": True}
    pieces: AsyncGenerator[Piece] = requests.stream(Step.TEXT.value, order, seconds=seconds_given(request), tenant=caller_of(request))
    async with aclosing(pieces):
        async for piece in pieces:
            yield timed(piece.body, begun) if piece.final else str(piece.body["delta"])


def timed(reply: dict[str, Any], begun: float) -> TextDone:
    done = TextDone.model_validate(reply)
    passed = {"endpoint_total_ms": round((time.perf_counter() - begun) * 1000, 1)}
    info = done.model_info
    return done.model_copy(update={"model_info": info.model_copy(update={"timings": info.timings.model_copy(update=passed)})})


def refusal(error: Failure, doing: str) -> Refused:
    """A failure as the source system says it. `doing`: its word for what failed."""
    if not isinstance(error, ReplyFault):
        return Refused(503, "no reply in time", NOT_READY, RETRY)
    code, message = error.fault.code, error.fault.message
    if code in AWAY:
        return Refused(503, code, NOT_READY, RETRY)
    if code == "document-unsupported":
        return Refused(400, code, UNSUPPORTED)
    if code in TOO_LARGE:
        return Refused(413, code, message)
    return Refused(400, code, message) if code in WRITINGS_OWN else Refused(500, code, f"{doing}: {message}")
