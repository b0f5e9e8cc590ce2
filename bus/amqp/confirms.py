"""Publishing on a channel of the client library with the library's record of confirms, but straight to the socket (decision 20).

The library's `basic_publish` takes a lock, a queue, a writer task and four callbacks for each message. Whatever is published on such a
channel must be published here: the broker numbers the messages of a channel, and so does the record.
"""

import asyncio
import struct
from contextlib import nullcontext
from functools import lru_cache, partial
from weakref import WeakSet

from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from aiormq.channel import Channel, Returning
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.constants import FRAME_END_CHAR, FRAME_HEADER
from pamqp.frame import marshal

from bus.amqp.short_paths import writer_of

MAX_ROUTING_KEY_BYTES = 255

_watched: WeakSet[Channel] = WeakSet()
"""The channels whose closing ends the wait for their confirms."""


async def publish(
    channel: Channel,
    body: bytes,
    properties: bytes,
    *,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    message_id: str,
    drain_lock: asyncio.Lock | None = None,
) -> None:
    """Publish a message with its encoded properties; return when the broker has confirmed it.

    `message_id`: of the properties, by which a returned message is recognised. `drain_lock`: write one at a time, when the socket has taken
    what was written before. Raises the library's PublishError for a returned message, DeliveryError for a refused one, and what closed
    the channel.
    """
    async with drain_lock or nullcontext():
        if drain_lock:
            await writer_of(channel).drain()
        frames = [_publish_frame(channel.number, exchange, routing_key, mandatory), *_content_frames(channel, body, properties)]
        tag = _write(channel, message_id, b"".join(frames))
    confirm = channel.confirmations[tag]
    try:
        await confirm
    finally:
        if confirm.done() and not confirm.cancelled():
            confirm.exception()  # it is not "never retrieved" when the caller was cancelled in the same turn
        if channel.message_id_delivery_tag.get(message_id) == tag:
            del channel.message_id_delivery_tag[message_id]


def _write(channel: Channel, message_id: str, frames: bytes) -> int:
    """Write the frames of a message and expect its confirm. Returns its number. Raises ChannelInvalidStateError."""
    writer = writer_of(channel)
    if channel not in _watched:
        _watched.add(channel)
        channel.closing.add_done_callback(partial(_end_confirms, channel))
    write = writer.write if channel.confirmations else writer.write_at_once  # alone, it would wait for the end of the turn in vain
    channel.delivery_tag += 1
    channel.confirmations[channel.delivery_tag] = asyncio.get_running_loop().create_future()
    channel.message_id_delivery_tag[message_id] = channel.delivery_tag
    write(frames)
    return channel.delivery_tag


def _end_confirms(channel: Channel, closing: asyncio.Future[None]) -> None:
    """What is not confirmed when the channel closes fails with the error that closed it."""
    cause = None if closing.cancelled() else closing.exception()
    for confirm in channel.confirmations.values():
        if not confirm.done() and not isinstance(confirm, Returning):  # a returned message has had its error
            unknown = ChannelInvalidStateError(f"{channel!r} was closed: {cause!r}")
            confirm.set_exception(cause if isinstance(cause, AMQPError | OSError) else unknown)


@lru_cache(1024)
def _publish_frame(number: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """Raises ValueError for a routing key that is too long."""
    if len(routing_key.encode()) > MAX_ROUTING_KEY_BYTES:
        raise ValueError(f"a routing key has {MAX_ROUTING_KEY_BYTES} bytes at most: {routing_key[:80]!r}…")
    return marshal(Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory), number)


def _content_frames(channel: Channel, body: bytes, properties: bytes) -> list[bytes]:
    """Header, and the body in frames of the negotiated size; in one frame where the broker has no limit."""
    content = struct.pack(">HxxQ", Basic.frame_id, len(body)) + properties
    header = struct.pack(">BHI", FRAME_HEADER, channel.number, len(content)) + content + FRAME_END_CHAR
    size = channel.max_content_size if channel.max_content_size > 0 else max(1, len(body))
    return [header, *(marshal(ContentBody(body[at : at + size]), channel.number) for at in range(0, len(body), size))]
