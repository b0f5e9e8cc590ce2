"""A stream of server-sent events whose first piece decides the status: what fails before it is an error like any other."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import StreamingResponse

from gateway.problems import Refused


async def send_stream(request: Request, pieces: AsyncGenerator[str]) -> StreamingResponse:
    """Whoever leaves closes the pieces. Raises Refused(503) when too many streams are open, and whatever the first piece raises."""
    state = request.app.state
    if state.streams >= state.settings.max_streams:
        raise Refused(503, "busy", f"{state.streams} streams are open already.", {"Retry-After": "5"})
    first = await anext(pieces)

    async def all_of_them() -> AsyncGenerator[str]:
        state.streams += 1
        try:
            async with aclosing(pieces):
                yield first
                async for piece in pieces:
                    yield piece
        finally:
            state.streams -= 1

    return StreamingResponse(all_of_them(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
