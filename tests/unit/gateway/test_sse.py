"""Server-sent events: the text of events, and the response whose first chunk decides its status."""

from collections.abc import AsyncGenerator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import Request

from gateway.memory_budget import guards_of
from gateway.problems import HttpProblem
from gateway.services import Services
from gateway.sse import event, json_data, json_event, sse_response
from tests.support.fake_broker import FakePublisher, make_services


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (event("end", "end"), "event: end\ndata: end\n\n"),
        (event("course", "<p>\n\n  <b>x</b>\n</p>\n"), "event: course\ndata: <p>\ndata:   <b>x</b>\ndata: </p>\n\n"),
        (json_event("delta", {"delta": "안녕"}), 'event: delta\ndata: {"delta": "안녕"}\n\n'),
        (json_data({"a": "1\n2"}), 'data: {"a": "1\\n2"}\n\n'),
    ],
)
def test_event_is_encoded_as_server_sent_event(text: str, expected: str) -> None:
    assert text == expected


class Chunks:
    """A generator of chunks, which records that it was closed. An exception among the chunks is raised."""

    def __init__(self, *chunks: str | Exception) -> None:
        self._chunks, self.closed = chunks, False

    async def generate(self) -> AsyncGenerator[str]:
        try:
            for chunk in self._chunks:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
        finally:
            self.closed = True


def request_with(services: Services) -> Request:
    scope = {"state": {"guards": ExitStack()}}
    return cast("Request", SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(services=services)), scope=scope))


async def test_stream_is_counted_and_closed() -> None:
    """Counted from before its first chunk until its request ends, also when the response is never sent."""
    services, chunks = make_services(FakePublisher({})), Chunks("a", "b")
    request = request_with(services)
    response = await sse_response(request, chunks.generate())
    body: AsyncGenerator[Any] = cast("AsyncGenerator[Any]", response.body_iterator)
    assert await anext(body) == "a"
    assert services.open_streams == 1
    assert [chunk async for chunk in body] == ["b"]
    assert (services.open_streams, chunks.closed, response.media_type) == (1, True, "text/event-stream")
    guards_of(request.scope).close()
    assert services.open_streams == 0


async def test_disconnect_closes_generator() -> None:
    services, chunks = make_services(FakePublisher({})), Chunks("a", "b")
    response = await sse_response(request_with(services), chunks.generate())
    body: AsyncGenerator[Any] = cast("AsyncGenerator[Any]", response.body_iterator)
    await anext(body)
    await body.aclose()
    assert chunks.closed


async def test_error_before_first_chunk_is_raised() -> None:
    services = make_services(FakePublisher({}))
    request = request_with(services)
    with pytest.raises(HttpProblem, match="unknown"), guards_of(request.scope):
        await sse_response(request, Chunks(HttpProblem(404, "job-unknown", "unknown")).generate())
    assert services.open_streams == 0


async def test_stream_over_limit_is_503() -> None:
    services = make_services(FakePublisher({}), max_streams=1)
    services.open_streams = 1
    with pytest.raises(HttpProblem) as raised:
        await sse_response(request_with(services), Chunks("a").generate())
    assert (raised.value.status, raised.value.headers) == (503, {"Retry-After": "5"})
