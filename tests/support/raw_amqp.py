"""A publisher that writes AMQP frames over a plain socket: it can send properties that no client library encodes."""

import socket
import struct
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame
from pamqp.base import Frame

CHANNEL = 1
FRAME_METHOD, FRAME_HEADER, FRAME_BODY, FRAME_END = 1, 2, 3, b"\xce"
BASIC_CLASS = 60


class PublishRefused(Exception):
    """The broker closed the channel or the connection instead of taking the message."""


class RawPublisher:
    """One connection with confirms; `publish` returns when the broker has confirmed. Each call blocks for at most `timeout` seconds."""

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 5672), timeout)
        self._frame_max = 131_072
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._read_until("Connection.Start")
        credentials = f"\0{unquote(parts.username or 'guest')}\0{unquote(parts.password or 'guest')}"
        self._send(commands.Connection.StartOk(client_properties={"product": "raw"}, mechanism="PLAIN", response=credentials), 0)
        self._read_until("Connection.Tune")
        self._send(commands.Connection.TuneOk(channel_max=10, frame_max=self._frame_max, heartbeat=0), 0)
        self._call(commands.Connection.Open(virtual_host=unquote(parts.path[1:]) or "/"), "Connection.OpenOk", 0)
        self._call(commands.Channel.Open(), "Channel.OpenOk")
        self._call(commands.Confirm.Select(), "Confirm.SelectOk")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._socket.close()

    def publish(self, properties: bytes, body: bytes, *, exchange: bytes = b"", routing_key: bytes) -> None:
        """`properties`: the flags of a content header and the values after them. Raises PublishRefused."""
        arguments = struct.pack(">HHH", BASIC_CLASS, 40, 0) + _short(exchange) + _short(routing_key) + b"\x00"
        header = struct.pack(">HHQ", BASIC_CLASS, 0, len(body)) + properties
        chunk = self._frame_max - 8
        bodies = [_frame(FRAME_BODY, body[start : start + chunk]) for start in range(0, len(body), chunk)]
        self._socket.sendall(_frame(FRAME_METHOD, arguments) + _frame(FRAME_HEADER, header) + b"".join(bodies))
        self._read_until("Basic.Ack")

    def _call(self, method: Frame, answer: str, channel: int = CHANNEL) -> None:
        self._send(method, channel)
        self._read_until(answer)

    def _send(self, method: Frame, channel: int) -> None:
        self._socket.sendall(frame.marshal(method, channel))

    def _read_until(self, name: str) -> None:
        while True:
            start = self._read(7)
            _, _, size = struct.unpack(">BHI", start)
            _, _, received = frame.unmarshal(start + self._read(size + 1))
            if received.name == name:
                return
            if isinstance(received, commands.Connection.Close | commands.Channel.Close):
                raise PublishRefused(f"{received.reply_code} {received.reply_text}")

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            received = self._socket.recv(size - len(data))
            if not received:
                raise PublishRefused("the broker closed the connection")
            data += received
        return data


def _short(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, CHANNEL, len(payload)) + payload + FRAME_END
