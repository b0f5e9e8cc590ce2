"""Reads the frames of a connection as the client library does, in less time for those that come with every message (decision 20).

The library reads a frame in three pieces and decodes it by a description of its fields. Here a delivery, a confirm and a part of a body
have decoders of their own. Whatever else arrives, or does not fit them, the library decodes.
"""

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress

from aiormq.connection import FrameReceiver, ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.constants import FRAME_BODY, FRAME_END, FRAME_METHOD
from pamqp.exceptions import PAMQPException
from pamqp.frame import unmarshal

FRAME_START = struct.Struct(">BHI")
"""Type, channel and size of a frame."""
CONFIRM = struct.Struct(">4xqBx")
"""Method, tag and bits of a Basic.Ack, and the end of the frame. The lowest bit is `multiple`."""
DELIVERY = struct.Struct(">qB")
"""Tag and bits of a Basic.Deliver. The lowest bit is `redelivered`."""

_read_by_library = FrameReceiver.get_frame


async def read_frame(self: FrameReceiver) -> ReceivedFrame:
    """Raises what the library raises: AMQPConnectionError at the end of the connection, InvalidFrameError for an invalid frame."""
    if not self.started or self.reader.at_eof():
        return await _read_by_library(self)
    try:
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


def decode_frame(kind: int, payload: bytes) -> Frame | ContentBody | None:
    """The frame of a payload with its end; None for one that the library is to decode."""
    if payload[-1] != FRAME_END:
        return None
    if kind == FRAME_BODY and len(payload) > 1:
        return ContentBody(payload[:-1])
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
