"""Server-sent events: a response whose first chunk is awaited before its status is sent, and the text of single events."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from gateway.memory_budget import guards_of
from gateway.problems import HttpProblem, problem_document, to_problem
from gateway.services import Services, services_of

RECONNECT_DELAY = "retry: 2000\n\n"
KEEPALIVE_COMMENT = ": keepalive\n\n"
STREAM_HEADERS = {"X-Accel-Buffering": "no", "Cache-Control": "no-cache, no-store, no-transform"}
"""Proxies neither collect a stream, nor keep or compress it."""
FIRST_CHUNK_SECONDS = 5.0
"""How long the first chunk is awaited at least, so that an error of a query keeps its status."""
LINE_SEPARATORS = {ord(separator): f"\\u{ord(separator):04x}" for separator in "\x85\u2028\u2029"}
END = ""
"""After the last chunk of a stream."""

LateError = Callable[[HttpProblem], str]
"""The event for an error of a stream that has begun with a comment only."""


def problem_event(problem: HttpProblem) -> str:
    return json_event("error", problem_document(problem))


async def sse_response(request: Request, chunks: AsyncGenerator[str], late_error: LateError = problem_event) -> StreamingResponse:
    """Send the chunks, and a comment after every GATEWAY_KEEPALIVE_SECONDS without one; close the generator when the client disconnects.

    Raises HttpProblem(503) over GATEWAY_MAX_STREAMS, and what the generator raises before its first chunk. When the first chunk takes
    longer than that interval and FIRST_CHUNK_SECONDS, the response has begun: an error is sent as the event that `late_error` makes of it.
    """
    services = services_of(request)
    guards_of(request.scope).enter_context(stream_slot(services))
    source = ChunkSource(chunks)
    guards_of(request.scope).callback(source.cancel)
    seconds = services.settings.keepalive_seconds
    first = await source.next_chunk(max(seconds, FIRST_CHUNK_SECONDS))

    async def sent_chunks() -> AsyncGenerator[str]:
        chunk, started = first, first is not None
        try:
            while chunk != END:
                yield KEEPALIVE_COMMENT if chunk is None else chunk
                chunk = await source.next_chunk(seconds)
                started = started or chunk is not None
        except Exception as error:
            if started:
                raise
            yield late_error(to_problem(error))
        finally:
            await source.close()

    return StreamingResponse(sent_chunks(), media_type="text/event-stream", headers=STREAM_HEADERS)


class ChunkSource:
    """A task that runs a generator, from its first step to its end: what the generator has open may belong to its task."""

    def __init__(self, chunks: AsyncGenerator[str]) -> None:
        self._chunks = chunks
        self._queue = asyncio.Queue[str | Exception](1)
        self._task = asyncio.ensure_future(self._run())

    async def next_chunk(self, seconds: float) -> str | None:
        """None after `seconds` without one, END after the last one. Raises what the generator raises."""
        try:
            async with asyncio.timeout(seconds):
                chunk = await self._queue.get()
        except TimeoutError:
            return None
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def cancel(self) -> None:
        self._task.cancel()

    async def close(self) -> None:
        self.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            async with aclosing(self._chunks):
                async for chunk in self._chunks:
                    if chunk:
                        await self._queue.put(chunk)
            await self._queue.put(END)
        except Exception as error:
            await self._queue.put(error)


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
    return f"data: {escape_line_separators(json.dumps(body, ensure_ascii=False))}\n\n"


def escape_line_separators(text: str) -> str:
    """JSON in which U+0085, U+2028 and U+2029 are escapes: they end no line of an event, and yet many clients cut it there."""
    return text.translate(LINE_SEPARATORS)
