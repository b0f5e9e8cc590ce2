"""Acknowledges deliveries, straight to the socket: all acks of one turn of the event loop go with one call of it (decision 20).

Nothing here raises: on a closed channel nothing is acknowledged, and the broker delivers the messages again.
"""

import struct

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelInvalidStateError
from pamqp.commands import Basic
from pamqp.constants import FRAME_END, FRAME_METHOD

from bus.amqp.short_paths import writer_of

ACK_FRAME = struct.Struct(">BHIIQ?B")
"""Type, channel, size, method, tag, `multiple` and the end."""
ACK_SIZE = 13

log = structlog.get_logger()


def ack(message: AbstractIncomingMessage) -> None:
    """Acknowledge a message: the newest of its channel and all that was written before it at once, another at the end of this turn."""
    try:
        channel = message.channel
        frame = ACK_FRAME.pack(FRAME_METHOD, channel.number, ACK_SIZE, Basic.Ack.index, message.delivery_tag or 0, False, FRAME_END)
        writer = writer_of(channel)
        is_newest = getattr(channel, "newest_delivery", None) == message.delivery_tag
        (writer.write_at_once if is_newest else writer.write)(frame)
    except ChannelInvalidStateError as error:
        log.info("delivery.ack_failed", message_id=message.message_id, error=repr(error))
    except Exception:
        log.exception("delivery.ack_failed", message_id=message.message_id)


async def requeue(message: AbstractIncomingMessage) -> None:
    """Return a message to its queue."""
    try:
        await message.reject(requeue=True)
    except Exception as error:
        log.info("delivery.ack_failed", message_id=message.message_id, error=repr(error))
