"""Server-sent events: a response whose first chunk is awaited before its status is sent, and the text of single events."""

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from gateway.memory_budget import guards_of
from gateway.problems import HttpProblem
from gateway.services import Services, services_of

RECONNECT_DELAY = "retry: 2000\n\n"
KEEPALIVE_COMMENT = ": keepalive\n\n"


async def sse_response(request: Request, chunks: AsyncGenerator[str]) -> StreamingResponse:
    """Send the chunks, and close the generator when the client disconnects.

    Raises HttpProblem(503) over GATEWAY_MAX_STREAMS, and what the generator raises before its first chunk.
    """
    guards_of(request.scope).enter_context(stream_slot(services_of(request)))
    first = await anext(chunks)

    async def closing_chunks() -> AsyncGenerator[str]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return StreamingResponse(closing_chunks(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@contextmanager
def stream_slot(services: Services) -> Iterator[None]:
    """One of GATEWAY_MAX_STREAMS, from before the first chunk is awaited until the response has been sent. Raises HttpProblem(503)."""
    if services.open_streams >= services.settings.max_streams:
        raise HttpProblem(503, "busy", f"{services.open_streams} streams are open already.", {"Retry-After": "5"})
    services.open_streams += 1
    try:
        yield
    finally:
        services.open_streams -= 1


def event(name: str, data: str) -> str:
    """One event; each line of `data` is a line of its own, blank ones are dropped."""
    lines = "".join(f"data: {line}\n" for line in data.replace("\r", "\n").split("\n") if line.strip())
    return f"event: {name}\n{lines}\n"


def json_event(name: str, body: dict[str, Any]) -> str:
    return f"event: {name}\n{json_data(body)}"


def json_data(body: dict[str, Any]) -> str:
    """An event without a name, as OpenAI's clients expect it."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
