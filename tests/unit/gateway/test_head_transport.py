"""The head of a response and the first part of its body are one system call."""

import asyncio
from asyncio.selector_events import _SelectorSocketTransport  # type: ignore[attr-defined]
from typing import Any

import pytest

from gateway.http_protocol import HeadTransport
from tests.unit.gateway.test_http_protocol import GET, serve, talk


class RecordingTransport:
    """`written`: what a system call each would have sent; None for its end."""

    def __init__(self) -> None:
        self.written: list[bytes | None] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.written.append(None)


def open_head_transport() -> tuple[Any, list[bytes | None]]:
    recording: Any = RecordingTransport()
    return HeadTransport(recording, asyncio.get_running_loop()), recording.written


async def test_head_and_first_part_of_a_body_are_one_system_call() -> None:
    transport, written = open_head_transport()
    transport.write(b"head ")
    transport.write(b"body")
    transport.flush()
    await asyncio.sleep(0)
    transport.write(b"more")
    assert written == [b"head body", b"more"]


async def test_head_whose_body_is_not_there_yet_is_sent_all_the_same() -> None:
    transport, written = open_head_transport()
    transport.write(b"head")
    await asyncio.sleep(0)
    assert written == [b"head"]
    transport.write(b"body")
    assert written == [b"head", b"body"]


async def test_head_is_sent_before_its_connection_is_closed() -> None:
    transport, written = open_head_transport()
    transport.write(b"head")
    transport.close()
    assert written == [b"head", None]


async def test_small_response_is_one_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the protocol as a whole: uvicorn writes the head by itself."""
    written: list[bytes] = []
    write = _SelectorSocketTransport.write

    def record(self: Any, data: bytes) -> None:
        written.append(data)
        write(self, data)

    monkeypatch.setattr(_SelectorSocketTransport, "write", record)
    async with serve() as served:
        answer, _ = await talk(served.port, GET.replace(b"Host: x", b"Host: x\r\nConnection: close"))
    assert answer.endswith(b"\r\n\r\n/small")
    assert [data for data in written if data.startswith(b"HTTP/1.1")] == [answer]
