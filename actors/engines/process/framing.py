"""Frames on a socket: four bytes of length, then a pickle. Blocking in the child, an asyncio Protocol in the parent."""

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any

HEADER = struct.Struct(">I")


def encode_frame(message: Any) -> bytes:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


class BlockingChannel:
    """The child's end."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)
        self.socket.setblocking(True)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Any) -> None:
        self.socket.sendall(encode_frame(message))

    def receive(self) -> Any:
        """The next message. Raises EOFError when the other side has closed the connection."""
        (length,) = HEADER.unpack(self._receive_exactly(HEADER.size))
        return pickle.loads(self._receive_exactly(length))  # noqa: S301 - our own parent wrote it

    def _receive_exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


class FrameProtocol(asyncio.Protocol):
    """The parent's end. Never blocks, also when the child stops in the middle of a frame."""

    def __init__(self, on_message: Callable[[Any], None]) -> None:
        self.on_message = on_message
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            self.on_message(pickle.loads(body))  # noqa: S301 - our own child wrote it

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
