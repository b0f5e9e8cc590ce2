"""Frames between the pool and its decoder processes: two lengths, then a JSON object, then bytes.

Nothing is pickled: a decoder that a malicious file has taken over can answer with data only.
"""

import json
import socket
import struct
from typing import Any

LENGTHS = struct.Struct("!IQ")
MAX_HEADER_BYTES = 16 << 20


class Refused(Exception):
    """The file cannot be decoded. `code` is that of the PermanentError that it becomes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def send_frame(connection: socket.socket, header: dict[str, Any], body: bytes) -> None:
    encoded = json.dumps(header).encode()
    connection.sendall(LENGTHS.pack(len(encoded), len(body)) + encoded)
    connection.sendall(body)


def receive_frame(connection: socket.socket, max_bytes: int) -> tuple[dict[str, Any], bytearray]:
    """Raises EOFError at the end of the connection, and for a frame that is larger than announced limits allow."""
    header_length, body_length = LENGTHS.unpack(_receive(connection, LENGTHS.size))
    if header_length > MAX_HEADER_BYTES or body_length > max_bytes:
        raise EOFError("the frame is too large")
    header: dict[str, Any] = json.loads(_receive(connection, header_length))
    return header, _receive(connection, body_length)


def _receive(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if not received:
            raise EOFError("the connection ended")
        view = view[received:]
    return data
