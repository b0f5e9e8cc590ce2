"""uvicorn's HTTP/1.1 protocol with a deadline for every state of a connection, and with limits of its size.

A connection waits for a request, for the rest of its headers, for its body, or for its client to read the response. uvicorn bounds only
the first of these, and neither the length nor the number of headers. `bounded_protocol` gives a class for `uvicorn.Config(http=…)`.
"""

import asyncio
import socket
import time
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import httptools
import structlog
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.connections import ConnectionLimits, ConnectionTable, Pace
from gateway.middleware.addresses import address_of

CHECK_SECONDS = 1.0
MAX_HEADERS = 128
MAX_PIPELINED = 16
"""Requests that a client may send before it has the response to the first one."""
UNSENT_BYTES = 64 << 10
SEND_CHUNK_BYTES = 256 << 10
"""A longer part of a response is sent piece by piece, each when the kernel has taken the one before."""

log = structlog.get_logger()


UPGRADE_HEADERS = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Waiting(Enum):
    """What the parser waits for."""

    REQUEST = auto()
    HEADERS = auto()
    BODY = auto()
    NOTHING = auto()


class RefusedRequest(Exception):
    """The request is too large to be parsed. Raised in a callback of the parser, which then stops."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. Every second `_check` looks how long its client has kept it waiting."""

    limits: ConnectionLimits
    table: ConnectionTable

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._application, self.app = self.app, self._send_in_pieces
        self._waiting_for, self._since, self._checked_at = Waiting.REQUEST, time.monotonic(), time.monotonic()
        self._is_first, self._held_bytes, self._head_bytes, self._body_bytes = True, 0, 0, 0
        self._written_bytes, self._taken_bytes = 0, 0
        self._body_pace = Pace(self.limits.body_seconds, self.limits.bytes_per_second)
        self._send_pace = Pace(self.limits.send_seconds, self.limits.bytes_per_second)
        self._refusal: HTTPStatus | None = None
        self._running: RequestResponseCycle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.address: str | None = None
        """Of the client; of one with IPv6 the network, since all of it is his."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = address_of({"client": self.client}) if self.client else None
        if not self.table.admit(self):
            transport.abort()
            return
        limit_unsent_bytes(transport)
        transport.set_write_buffer_limits(high=0)  # `send` returns when the kernel has all bytes, so that a request's guards cover them.
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self.table.remove(self)
        if self._timer:
            self._timer.cancel()
        self._disconnect_running()
        super().connection_lost(exc)

    def _disconnect_running(self) -> None:
        """uvicorn tells only the request that it has parsed last; with pipelining another one runs."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def evict(self) -> None:
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Refuse what the parser only collects: a header, or a trailer, that does not end."""
        if self.transport.is_closing():
            return
        self._held_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        if self._held_bytes > self.limits.max_header_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _parse(self, data: bytes) -> None:
        """A request that asks for another protocol is parsed once more without that: its parser would skip its body.

        Java's client asks for HTTP/2 with every first request.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = new_parser(self)

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] not in UPGRADE_HEADERS]
        lines += [b"Connection: close" for name, value in self.headers if name == b"connection" and b"close" in value.lower()]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._close("too many pipelined requests")
            raise RefusedRequest
        super().on_message_begin()
        self._held_bytes, self._head_bytes = 0, 0
        self._wait_for(Waiting.HEADERS)

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        if self._head_bytes > self.limits.max_header_bytes // 2:
            self._refusal = HTTPStatus.REQUEST_URI_TOO_LONG
            raise RefusedRequest
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if len(self.headers) >= MAX_HEADERS or self._head_bytes > self.limits.max_header_bytes:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise RefusedRequest
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise RefusedRequest
            return
        super().on_headers_complete()
        self._held_bytes, self._body_bytes = 0, 0
        self._body_pace.reset()
        self._wait_for(Waiting.BODY)
        self.table.mark_serving(self)

    def on_body(self, body: bytes) -> None:
        self._held_bytes, self._body_bytes = 0, self._body_bytes + len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._held_bytes = 0
        self._wait_for(Waiting.REQUEST if self._idle else Waiting.NOTHING)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._is_first = False
        self._wait_for(Waiting.REQUEST if self._waiting_for is Waiting.NOTHING else self._waiting_for)
        if self._idle:
            self.table.mark_waiting(self)

    def send_400_response(self, msg: str) -> None:
        """The parser stopped: the request is malformed, or a callback refused it."""
        self._refuse(self._refusal or HTTPStatus.BAD_REQUEST)

    @property
    def _idle(self) -> bool:
        """No response is due."""
        return (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    @property
    def _idle_limit(self) -> float:
        return self.limits.header_seconds if self._is_first else self.limits.idle_seconds

    def _wait_for(self, what: Waiting) -> None:
        self._waiting_for, self._since = what, time.monotonic()

    def _check(self) -> None:
        now = time.monotonic()
        seconds, self._checked_at = now - self._checked_at, now
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)
        if self._reads_too_slowly(seconds):
            self._close("the response was not read")
        elif not self.transport.is_closing():
            self._check_request(now, seconds)

    def _reads_too_slowly(self, seconds: float) -> bool:
        """Whether the kernel takes the response too slowly, since its client reads it too slowly."""
        unsent = self.transport.get_write_buffer_size()
        before, self._taken_bytes = self._taken_bytes, self._written_bytes - unsent
        if not unsent:
            self._send_pace.reset()
            return False
        return self._send_pace.advance(seconds, max(0, self._taken_bytes - before))

    def _check_request(self, now: float, seconds: float) -> None:
        received, self._body_bytes = self._body_bytes, 0
        if self._waiting_for is Waiting.BODY:
            if not self.flow.read_paused and self._body_pace.advance(seconds, received):
                self._time_out("the body is too slow")
            elif self._idle and now - self._since > self.limits.body_seconds:
                self._close("the rest of a body that is not needed")
        elif self._idle and self._waiting_for is Waiting.HEADERS and now - self._since > self.limits.header_seconds:
            self._time_out("the headers are too slow")
        elif self._idle and self._waiting_for is Waiting.REQUEST and now - self._since > self._idle_limit:
            self.transport.close()

    def _time_out(self, reason: str) -> None:
        log.info("connection.timed_out", reason=reason, address=self.address)
        self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer, unless another response has begun, and close. The application learns that its client is gone."""
        if self.transport.is_closing():
            return
        running, transport = self._running, self.transport
        if running is None or running.response_complete or not running.response_started:
            transport.write(refusal(status))
        else:
            transport = running.transport  # it may hold the head, and sends it before it closes
        self._disconnect_running()
        transport.close()

    def _close(self, reason: str) -> None:
        log.info("connection.closed", reason=reason, address=self.address)
        self.transport.abort()

    async def _send_in_pieces(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, whose `send` returns when the kernel has taken the bytes: it holds its guards until then."""

        cycle: Any = getattr(receive, "__self__", None)
        unframed = False
        transport = HeadTransport(self.transport, self.loop)

        async def send_and_drain(message: Message) -> None:
            nonlocal unframed
            if message["type"] != "http.response.body":
                unframed = scope["http_version"] == "1.0" and all(name.lower() != b"content-length" for name, _ in message["headers"])
                prepare_cycle(cycle, unframed=unframed)
                cycle.transport = transport
                await send(message)
                return
            body = message.get("body", b"")
            for start in range(0, len(body), SEND_CHUNK_BYTES):
                piece = body[start : start + SEND_CHUNK_BYTES]
                if unframed:
                    cycle.expected_content_length = len(piece)
                await send({**message, "body": piece, "more_body": True})
                self._written_bytes += len(piece)
            transport.flush()
            if self.flow.write_paused:
                await self.flow.drain()
            if not message.get("more_body"):  # by itself, since uvicorn counts the request as disconnected after it
                await send({**message, "body": b"", "more_body": False})

        self._running = cycle
        await self._application(scope, receive, send_and_drain)


class HeadTransport:
    """The transport of one response: it keeps the head for the first part of the body, so that both are one system call.

    A head whose body is not there yet goes out as soon as the event loop runs again.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._head, self._has_begun = transport, loop, b"", False

    def write(self, data: bytes) -> None:
        if not self._has_begun:
            self._head, self._has_begun = data, True
            self._loop.call_soon(self.flush)
        else:
            head, self._head = self._head, b""
            self._transport.write(head + data)

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


def new_parser(protocol: BoundedHttpProtocol) -> httptools.HttpRequestParser:
    """As uvicorn opens it: data after a request that closes the connection are no error."""
    parser = httptools.HttpRequestParser(protocol)
    if hasattr(parser, "set_dangerous_leniencies"):
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def prepare_cycle(cycle: Any, *, unframed: bool) -> None:
    """Before the head of a response is sent. `unframed`: HTTP/1.0 knows no chunks, so that the end of the connection ends the response.

    A client that waits for `100 Continue` may send its body or not: where its next request begins would be unknown.
    """
    if unframed:
        cycle.chunked_encoding = False
    if cycle.waiting_for_100_continue:
        cycle.keep_alive = False


def limit_unsent_bytes(transport: asyncio.Transport) -> None:
    """With megabytes in its buffer the kernel takes nothing for minutes from a slow reader, whose progress would not be seen."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def bounded_protocol(limits: ConnectionLimits) -> type[BoundedHttpProtocol]:
    """A class with these limits and a table of its own connections."""
    return type("LimitedHttpProtocol", (BoundedHttpProtocol,), {"limits": limits, "table": ConnectionTable(limits)})


def refusal(status: HTTPStatus) -> bytes:
    """A whole response, after which the connection is closed."""
    body = f'{{"type": "about:blank", "title": "{status.phrase}", "status": {status.value}, "detail": "{status.description}"}}'.encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body
