"""`confirms.publish`: a message has the frames of the client library, and ends with its confirm, its refusal or the channel."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aio_pika.exceptions import ChannelInvalidStateError, DeliveryError
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel as LibraryChannel
from aiormq.exceptions import ChannelClosed, ConnectionClosed
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from bus.amqp import confirms
from bus.amqp.raw_properties import encode_properties

FRAME_BODY_SIZE = 10


class Channel:
    """A channel of the client library as far as a publisher needs it; the test is its broker."""

    def __init__(self) -> None:
        self.number, self.max_content_size, self.delivery_tag = 3, FRAME_BODY_SIZE, 0
        self.confirmations: dict[int, asyncio.Future[Any]] = {}
        self.message_id_delivery_tag: dict[str, int] = {}
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.__close_event = asyncio.Event()
        self.written, self.at_once, self.drained = list[bytes](), list[bytes](), asyncio.Event()
        writer = SimpleNamespace(write=self.written.append, write_at_once=self.write_at_once, drain=self.drained.wait)
        self.connection = SimpleNamespace(_transport_factory=SimpleNamespace(writer=writer))

    def write_at_once(self, frames: bytes) -> None:
        self.written.append(frames)
        self.at_once.append(frames)

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    async def close(self, error: BaseException) -> None:
        self.closing.set_exception(error)
        await asyncio.sleep(0)


async def start(channel: Channel, message_id: str = "m", body: bytes = b"{}", **options: Any) -> asyncio.Task[None]:
    """A publish that waits for its confirm."""
    properties = encode_properties(message_id=message_id)
    publish = confirms.publish(
        cast("LibraryChannel", channel), body, properties, exchange="e", routing_key="r", mandatory=True, message_id=message_id, **options
    )
    task = asyncio.create_task(publish)
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("size", [0, 1, FRAME_BODY_SIZE, FRAME_BODY_SIZE + 1, 3 * FRAME_BODY_SIZE])
async def test_frames_are_those_of_the_library(size: int) -> None:
    channel, body = Channel(), bytes(range(size))
    (await start(channel, body=body)).cancel()
    header = ContentHeader(body_size=size, properties=Basic.Properties(message_id="m"))
    parts = [ContentBody(body[at : at + FRAME_BODY_SIZE]) for at in range(0, size, FRAME_BODY_SIZE)]
    frames: list[Any] = [Basic.Publish(exchange="e", routing_key="r", mandatory=True), header, *parts]
    assert channel.written == [ChannelFrame.marshall(3, frames).payload]


async def test_a_publish_waits_for_the_end_of_the_turn_only_beside_others() -> None:
    channel = Channel()
    first, second = await start(channel, "1"), await start(channel, "2")
    assert (len(channel.written), channel.at_once) == (2, channel.written[:1])
    for tag, task in ((1, first), (2, second)):
        channel.confirmations.pop(tag).set_result(Basic.Ack(tag))
        await task
    (await start(channel, "3")).cancel()
    assert channel.at_once == [channel.written[0], channel.written[2]]


async def test_each_publish_ends_with_its_own_confirm() -> None:
    channel = Channel()
    first, second = await start(channel, "1"), await start(channel, "2")
    assert channel.message_id_delivery_tag == {"1": 1, "2": 2}
    channel.confirmations.pop(2).set_result(Basic.Ack(2))
    await second
    assert not first.done()
    channel.confirmations.pop(1).set_exception(DeliveryError(None, Basic.Nack(1)))
    with pytest.raises(DeliveryError):
        await first
    assert channel.message_id_delivery_tag == {}


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ChannelClosed(404, "x"), ChannelClosed), (ConnectionClosed(320, "x"), ConnectionClosed), (OSError(), OSError)]
    + [(error, ChannelInvalidStateError) for error in (RuntimeError("x"), asyncio.CancelledError())],
)
async def test_the_end_of_the_channel_ends_every_publish_and_refuses_the_next(error: BaseException, raised: type[Exception]) -> None:
    channel = Channel()
    tasks = [await start(channel, str(number)) for number in range(3)]
    await channel.close(error)
    assert [type(result) for result in await asyncio.gather(*tasks, return_exceptions=True)] == [raised] * 3
    with pytest.raises(ChannelInvalidStateError):
        await (await start(channel))
    assert len(channel.written) == 3


async def test_a_cancelled_publish_leaves_the_confirm_of_the_others() -> None:
    channel = Channel()
    first, second = await start(channel, "1"), await start(channel, "2")
    first.cancel()
    await asyncio.wait({first})
    assert (channel.confirmations[1].cancelled(), channel.message_id_delivery_tag) == (True, {"2": 2})
    channel.confirmations.pop(2).set_result(Basic.Ack(2))
    await second


async def test_with_a_drain_lock_nothing_is_written_before_the_socket_has_taken_the_rest() -> None:
    """Not even when one that waits is cancelled, as all of them are when a broker that is blocked does not confirm in time."""
    channel, lock = Channel(), asyncio.Lock()
    first, second = await start(channel, "1", drain_lock=lock), await start(channel, "2", drain_lock=lock)
    first.cancel()
    await asyncio.wait({first})
    await asyncio.sleep(0)
    assert channel.written == []
    channel.drained.set()
    while not channel.written:
        await asyncio.sleep(0)
    assert channel.message_id_delivery_tag == {"2": 1}
    channel.confirmations.pop(1).set_result(Basic.Ack(1))
    await second
