"""A stream of server-sent events whose first piece decides the status: what fails before it is an error like any other."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from gateway.problems import HttpProblem


async def sse_response(request: Request, chunks: AsyncGenerator[str]) -> StreamingResponse:
    """Whoever leaves closes the pieces. Raises Refused(503) when too many streams are open, and whatever the first piece raises."""
    state = request.app.state
    if state.streams >= state.settings.max_streams:
        raise HttpProblem(503, "busy", f"{state.streams} streams are open already.", {"Retry-After": "5"})
    first = await anext(chunks)

    async def all_of_them() -> AsyncGenerator[str]:
        state.streams += 1
        try:
            async with aclosing(chunks):
                yield first
                async for piece in chunks:
                    yield piece
        finally:
            state.streams -= 1

    return StreamingResponse(all_of_them(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


RECONNECT_DELAY = "retry: 2000\n\n"


KEEPALIVE_COMMENT = ": keepalive\n\n"


def json_event(name: str, body: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"


def json_data(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
