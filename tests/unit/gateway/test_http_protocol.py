"""Raw sockets against the gateway's HTTP protocol around a small application, with limits of fractions of a second."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway import http_protocol
from gateway.connections import ConnectionLimits
from gateway.http_protocol import MAX_HEADERS, MAX_PIPELINED, bounded_protocol
from gateway.middleware.body import LimitedBody
from gateway.middleware.disconnect import cancel_on_disconnect

LIMITS: dict[str, Any] = {
    "header_seconds": 0.4,
    "idle_seconds": 0.4,
    "body_seconds": 0.4,
    "send_seconds": 0.4,
    "bytes_per_second": 1000,
    "max_header_bytes": 8192,
    "max_connections": 50,
    "address_connections": 50,
}
GET = b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE_BYTES = 20_000_000


class Served:
    """A server on `port`. `ended`: how many requests for /large have ended. `started`, `bodies`: of the requests for /body."""

    def __init__(self) -> None:
        self.port, self.ended, self.started, self.bodies = 0, 0, 0, list[int]()
        self.protocol: Any = None

    async def small(self, request: Request) -> Response:
        return PlainTextResponse(request.url.path[:10])

    async def body(self, request: Request) -> Response:
        self.started += 1
        self.bodies.append(len(await request.body()))
        return PlainTextResponse(str(self.bodies[-1]))

    async def large(self, request: Request) -> Response:
        served = self

        class Large(Response):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                try:
                    await super().__call__(scope, receive, send)
                finally:
                    served.ended += 1

        return Large(b"x" * int(request.query_params.get("size", LARGE_BYTES)))

    async def endless(self, request: Request) -> Response:
        """A stream that ends when its client has gone."""

        async def parts() -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(0.05)

        self.started += 1
        return EndlessResponse(parts(), self)

    async def interrupted(self, request: Request) -> Response:
        """A malformed request arrives in the turn of the event loop in which the response begins."""

        async def begin(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            receive.__self__.on_response.__self__.data_received(b"garbage\r\n\r\n")
            await send({"type": "http.response.body", "body": b"late"})

        return cast("Response", begin)

    async def slow(self, request: Request) -> Response:
        await asyncio.sleep(1.2)
        return PlainTextResponse("slow")


class EndlessResponse(StreamingResponse):
    def __init__(self, parts: AsyncIterator[bytes], served: Served) -> None:
        super().__init__(parts)
        self.served = served

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.served.ended += 1


def watch(app: Any) -> Any:
    async def watched(scope: Any, receive: Any, send: Any) -> None:
        await cancel_on_disconnect(app, scope, LimitedBody(receive, Headers(scope=scope), 1000), send)

    return watched


@asynccontextmanager
async def serve(*, watched: bool = False, **limits: Any) -> AsyncIterator[Served]:
    """`watched`: inside the gateway's own watcher of disconnects."""
    served = Served()
    routes = [
        Route("/small", served.small),
        Route("/body", served.body, methods=["POST"]),
        Route("/large", served.large),
        Route("/slow", served.slow),
        Route("/interrupted", served.interrupted),
        Route("/endless", served.endless),
    ]
    served.protocol = bounded_protocol(ConnectionLimits(**LIMITS | limits))
    app: Any = Starlette(routes=routes)
    config = uvicorn.Config(watch(app) if watched else app, port=0, log_config=None, lifespan="off", http=served.protocol, ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    served.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.should_exit = server.force_exit = True
        await serving


@pytest.fixture(autouse=True)
def _fast_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "CHECK_SECONDS", 0.05)


async def talk(port: int, *parts: bytes, pause: float = 0.0, end: bool = False) -> tuple[bytes, float]:
    """Send the parts with pauses, until the server closes the connection. Returns what it sent, and the seconds until then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.monotonic()
    received = bytearray()

    async def read() -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                received.extend(data)

    reading = asyncio.create_task(read())
    for part in parts:
        if reading.done():
            break
        with suppress(OSError):
            writer.write(part)
            await writer.drain()
        if pause:
            await asyncio.wait({reading}, timeout=pause)
    if end:
        with suppress(OSError):
            writer.write_eof()
    try:
        await asyncio.wait_for(reading, 5)
    finally:
        writer.close()
    return bytes(received), time.monotonic() - started


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


async def test_headers_of_one_byte_at_a_time_are_408() -> None:
    async with serve() as served:
        answer, seconds = await talk(served.port, *(bytes([byte]) for byte in GET[:-2] + b"X-A: " + b"a" * 100), pause=0.05)
    assert status_of(answer) == 408
    assert 0.3 < seconds < 1.5


async def test_connection_without_a_request_is_closed() -> None:
    """Also one that sends blank lines, which the parser skips."""
    async with serve() as served:
        for parts in ([], [b"\r\n"] * 60):
            answer, seconds = await talk(served.port, *parts, pause=0.05)
            assert (answer, seconds < 2) == (b"", True)


async def test_idle_connection_is_closed_after_a_response() -> None:
    async with serve(header_seconds=60) as served:
        answer, seconds = await talk(served.port, GET)
    assert status_of(answer) == 200
    assert 0.3 < seconds < 1.5


@pytest.mark.parametrize(
    "head",
    [b"POST /body HTTP/1.1\r\nContent-Length: 1000\r\n\r\nx", b"POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"],
)
async def test_stalled_body_is_408_and_the_application_ends(head: bytes) -> None:
    async with serve() as served:
        answer, seconds = await talk(served.port, head)
        assert (status_of(answer), served.bodies, served.started) == (408, [], 1)
        assert 0.3 < seconds < 1.5


async def test_body_of_a_slow_line_is_accepted() -> None:
    """Twice as fast as the minimum, for several times the deadline."""
    async with serve() as served:
        head = b"POST /body HTTP/1.1\r\nConnection: close\r\nContent-Length: 4000\r\n\r\n"
        answer, seconds = await talk(served.port, head, *[b"x" * 100] * 40, pause=0.05)
    assert (status_of(answer), served.bodies) == (200, [4000])
    assert seconds > 1.2


async def test_body_below_the_minimum_rate_is_408() -> None:
    async with serve() as served:
        answer, seconds = await talk(served.port, b"POST /body HTTP/1.1\r\nContent-Length: 4000\r\n\r\n", *[b"x"] * 100, pause=0.03)
    assert (status_of(answer), served.bodies) == (408, [])
    assert seconds < 2


async def test_body_that_nobody_needs_is_not_awaited_for_ever() -> None:
    """The response came before the body: 404, and its sender goes on at a lawful rate."""
    async with serve() as served:
        head = b"POST /nowhere HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"
        answer, seconds = await talk(served.port, head, *[b"x" * 200] * 100, pause=0.05)
    assert status_of(answer) == 404
    assert seconds < 2


async def test_half_closed_connection_ends() -> None:
    async with serve(header_seconds=60, idle_seconds=60, body_seconds=60) as served:
        for request in (b"", GET[:10], b"POST /body HTTP/1.1\r\nContent-Length: 1000\r\n\r\nx"):
            _, seconds = await talk(served.port, request, end=True)
            assert seconds < 1, request


async def test_slow_application_is_not_a_slow_client() -> None:
    async with serve() as served:
        answer, _ = await talk(served.port, b"GET /slow HTTP/1.1\r\n\r\n")
    assert (status_of(answer), answer[-4:]) == (200, b"slow")


async def open_slow_reader(port: int, request: bytes = b"GET /large HTTP/1.1\r\n\r\n") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(request)
    return reader, writer


async def test_reader_that_takes_nothing_is_disconnected() -> None:
    async with serve() as served:
        _, writer = await open_slow_reader(served.port)
        await wait_until_true(lambda: served.ended == 1)
        await wait_until_true(lambda: len(served.protocol.table) == 0)
        writer.close()
    assert (served.ended, len(served.protocol.table)) == (1, 0)


async def test_request_lasts_until_its_last_part_has_been_taken() -> None:
    """Also inside the watcher of disconnects: for uvicorn a request whose last part is in its buffer has no client any more."""
    loop = asyncio.get_running_loop()
    async with serve(send_seconds=60, watched=True) as served:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            await loop.sock_connect(connection, ("127.0.0.1", served.port))
            await loop.sock_sendall(connection, b"GET /large?size=250000 HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(2)
            assert served.ended == 0
            while served.ended == 0:
                assert await loop.sock_recv(connection, 65536)


async def test_request_lasts_until_its_response_has_been_sent() -> None:
    """One part of 20 MB: the application must not believe that it has been sent while it is still in a buffer."""
    async with serve(send_seconds=60) as served:
        reader, writer = await open_slow_reader(served.port)
        await asyncio.sleep(0.4)
        assert served.ended == 0
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"200 OK" in head
        assert len(await reader.readexactly(LARGE_BYTES)) == LARGE_BYTES
        await wait_until_true(lambda: served.ended == 1)
        writer.close()


async def test_slow_but_steady_reader_receives_everything() -> None:
    async with serve(send_seconds=0.5, bytes_per_second=100_000) as served:
        reader, writer = await open_slow_reader(served.port)
        received, started = 0, time.monotonic()
        while received < LARGE_BYTES and (data := await reader.read(1 << 19)):
            received += len(data)
            if time.monotonic() - started < 2:
                await asyncio.sleep(0.05)
        writer.close()
    assert received > LARGE_BYTES


async def test_reader_twice_as_fast_as_required_is_served_on() -> None:
    """The kernel buffers little, so that its progress is seen all the time."""
    loop = asyncio.get_running_loop()
    async with serve(send_seconds=5, bytes_per_second=20_000) as served:
        with socket.socket() as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, ("127.0.0.1", served.port))
            await loop.sock_sendall(connection, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            started = time.monotonic()
            while time.monotonic() - started < 12:
                await loop.sock_recv(connection, 2_000)
                assert len(served.protocol.table) == 1, "disconnected"
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("garbage", [False, True])
async def test_running_request_ends_with_its_client_also_behind_a_pipelined_one(garbage: bool) -> None:
    """Also when a later request is refused, whose answer must not stand within the response of the first."""
    async with serve() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(6)
        if garbage:
            writer.write(b"garbage\r\n\r\n")
            assert b"HTTP/1.1" not in await reader.read()
        writer.transport.abort()
        await wait_until_true(lambda: served.ended == 1)


async def wait_until_true(condition: Any) -> None:
    async with asyncio.timeout(3):
        while not condition():
            await asyncio.sleep(0.02)


async def test_response_that_has_begun_is_sent_before_a_malformed_request_ends_its_connection() -> None:
    async with serve() as served:
        answer, _ = await talk(served.port, GET.replace(b"small", b"interrupted"))
    assert (status_of(answer), answer.count(b"HTTP/1.1")) == (200, 1)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /small?" + b"&".join(b"a%d=b" % number for number in range(5000)) + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /small HTTP/1.1\r\nX-Long: " + b"a" * 60_000 + b"\r\n\r\n", 431),
        (b"GET /small HTTP/1.1\r\nX-Endless: " + b"a" * 600_000, 431),
        (b"GET /small HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431),
        (b"GET /small HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEADERS + b"\r\n", 200),
        (b"POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: " + b"a" * 600_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\n\r\n", 400),
        (b"GET /small HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
    ],
)
async def test_oversized_or_malformed_request_has_its_status(request_bytes: bytes, status: int) -> None:
    async with serve() as served:
        answer, _ = await talk(served.port, request_bytes)
        assert status_of(answer) == status
        await wait_until_true(lambda: len(served.protocol.table) == 0)


async def test_pipelined_requests_are_answered_in_order_up_to_a_limit() -> None:
    async with serve() as served:
        answer, _ = await talk(served.port, b"GET /slow HTTP/1.1\r\n\r\n" + GET * 5)
        assert answer.count(b"200 OK") == 6
        assert answer.index(b"slow") < answer.index(b"/small")
        answer, seconds = await talk(served.port, b"GET /slow HTTP/1.1\r\n\r\n" + GET * (MAX_PIPELINED + 2))
        assert (answer, seconds < 1) == (b"", True)


async def test_full_table_closes_the_connection_that_waits_longest() -> None:
    """And serves the new one. A connection whose request is being served stays."""
    async with serve(header_seconds=60, address_connections=3) as served:
        serving = asyncio.create_task(talk(served.port, b"GET /slow HTTP/1.1\r\nConnection: close\r\n\r\n"))
        await asyncio.sleep(0.1)
        idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(6)]
        await asyncio.sleep(0.1)
        assert len(served.protocol.table) == 3
        assert [reader.at_eof() for reader, _ in idle] == [True] * 4 + [False] * 2
        answer, _ = await talk(served.port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert status_of(answer) == 200
        assert status_of((await serving)[0]) == 200
        for _, writer in idle:
            writer.close()


async def test_new_connection_is_refused_only_when_all_others_are_served() -> None:
    async with serve(max_connections=2) as served:
        request = b"GET /slow HTTP/1.1\r\nConnection: close\r\n\r\n"
        serving = [asyncio.create_task(talk(served.port, request)) for _ in range(2)]
        await asyncio.sleep(0.2)
        assert (await talk(served.port, GET))[0] == b""
        assert [status_of(answer) for answer, _ in await asyncio.gather(*serving)] == [200, 200]
