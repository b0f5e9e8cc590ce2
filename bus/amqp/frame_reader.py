"""Reads the frames of a connection as the client library does, in less time for those that come with every message (decision 20).

The library reads a frame in three pieces and decodes it by a description of its fields. Here a delivery, a confirm and a part of a body
have decoders of their own. Whatever else arrives, or does not fit them, the library decodes.
"""

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiormq.connection import FrameReceiver, ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.constants import FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_METHOD
from pamqp.exceptions import PAMQPException
from pamqp.frame import unmarshal
from pamqp.header import ContentHeader

FRAME_START = struct.Struct(">BHI")
"""Type, channel and size of a frame."""
CONFIRM = struct.Struct(">4xqBx")
"""Method, tag and bits of a Basic.Ack, and the end of the frame. The lowest bit is `multiple`."""
DELIVERY = struct.Struct(">qB")
"""Tag and bits of a Basic.Deliver. The lowest bit is `redelivered`."""

_read_by_library = FrameReceiver.get_frame


class DirectReader(asyncio.StreamReader):
    """Gives the frames that a channel can take at once to the channel, in the turn in which they arrive; what follows is read as before.

    `connection`: of the first channel that was opened. `between_frames`: whether the connection's reader waits for the start of a frame.
    """

    connection: Any = None
    between_frames = False

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # a transport has bytes
        taken = self._take(data) if self.connection and self.between_frames and not self._buffer else 0  # type: ignore[attr-defined]
        if taken < len(data):
            super().feed_data(data[taken:])

    def _take(self, data: bytes) -> int:
        """How many bytes the channels have taken."""
        at = 0
        while at + FRAME_START.size < len(data):
            kind, number, size = FRAME_START.unpack_from(data, at)
            start, end = at + FRAME_START.size, at + FRAME_START.size + size + 1
            frames = getattr(self.connection.channels.get(number), "frames", None)
            if end > len(data) or frames is None:
                break
            frame = decode_frame(kind, data[start:end])
            if frame is None or not frames.take(frame, end - at):
                break
            at = end
        if at:
            self.connection._Connection__last_frame_time = self.connection.loop.time()
        return at


async def read_frame(self: FrameReceiver) -> ReceivedFrame:
    """Raises what the library raises: AMQPConnectionError at the end of the connection, InvalidFrameError for an invalid frame."""
    if not self.started or self.reader.at_eof():
        return await _read_by_library(self)
    try:
        if isinstance(self.reader, DirectReader):
            self.reader.between_frames = True
            try:
                start = await self.reader.readexactly(FRAME_START.size)
            finally:  # a connection whose reader was cancelled takes nothing more
                self.reader.between_frames = False
        else:
            start = await self.reader.readexactly(FRAME_START.size)
        kind, channel, size = FRAME_START.unpack(start)
        payload = await self.reader.readexactly(size + 1)
    except (asyncio.IncompleteReadError, OSError) as error:
        raise AMQPConnectionError(f"the connection to the broker ended: {error!r}") from error
    if frame := decode_frame(kind, payload):
        return len(start) + len(payload), channel, frame
    try:
        return unmarshal(start + payload)
    except PAMQPException as error:
        raise InvalidFrameError(str(error)) from error


def decode_frame(kind: int, payload: bytes) -> Frame | ContentHeader | ContentBody | None:
    """The frame of a payload with its end; None for one that the library is to decode."""
    if payload[-1] != FRAME_END:
        return None
    if kind == FRAME_BODY and len(payload) > 1:
        return ContentBody(payload[:-1])
    if kind == FRAME_HEADER:
        header = ContentHeader()
        with suppress(ValueError, struct.error):
            header.unmarshal(payload[:-1])
            return header
    decoder = _DECODERS.get(payload[:4]) if kind == FRAME_METHOD else None
    if decoder:
        with suppress(ValueError, IndexError, struct.error):  # a text that is not UTF-8 is a ValueError
            return decoder(payload)
    return None


def _decode_delivery(payload: bytes) -> Basic.Deliver:
    frame, at = Basic.Deliver.__new__(Basic.Deliver), 5 + payload[4]
    frame.consumer_tag = payload[5:at].decode()
    frame.delivery_tag, bits = DELIVERY.unpack_from(payload, at)
    frame.redelivered = bool(bits & 1)
    start = at + DELIVERY.size + 1
    end = start + payload[start - 1]
    frame.exchange = payload[start:end].decode()
    if end + 2 + payload[end] != len(payload):
        raise ValueError("the routing key does not end with the frame")
    frame.routing_key = payload[end + 1 : -1].decode()
    return frame


def _decode_confirm(payload: bytes) -> Basic.Ack:
    frame = Basic.Ack.__new__(Basic.Ack)
    frame.delivery_tag, bits = CONFIRM.unpack(payload)
    frame.multiple = bool(bits & 1)
    return frame


_DECODERS: dict[bytes, Callable[[bytes], Frame]] = {
    struct.pack(">I", Basic.Deliver.index): _decode_delivery,
    struct.pack(">I", Basic.Ack.index): _decode_confirm,
}
