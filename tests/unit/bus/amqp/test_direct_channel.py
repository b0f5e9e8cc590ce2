"""`DirectChannel` and `DirectReader`: whatever the frames and however they are cut, the same ends as with the library's own channel."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from operator import add
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aio_pika.abc import AbstractIncomingMessage
from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.base import FutureStore
from aiormq.channel import Channel
from aiormq.connection import FrameReceiver
from aiormq.exceptions import DeliveryError
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from bus.amqp.direct_channel import DirectChannel, deliver
from bus.amqp.frame_reader import FRAME_START, DirectReader, read_frame
from bus.worker.in_flight import InFlightTasks

PUBLISHED = 6
"""Messages that wait for a confirm on each channel."""
CONSUMER, UNKNOWN = "consumer", "nobody"


class Connection:
    """As far as a channel and its reader need it. `read`: what the library's connection does with each frame."""

    def __init__(self, channel_class: type[Channel], reader: asyncio.StreamReader) -> None:
        self.loop = asyncio.get_running_loop()
        self.store, self.write_queue = FutureStore(self.loop), asyncio.Queue[Any]()
        self.publisher_confirms, self.connection_tune = True, SimpleNamespace(frame_max=131_072)
        self.is_opened, self.accept_consumer_cancel_ok = False, False
        self._transport_factory = SimpleNamespace(reader=reader)
        self.__last_frame_time = 0.0
        self.delivered: list[tuple[int, int | None, bytes]] = []
        self.channels = {number: self.open(channel_class, number) for number in (1, 2)}
        self.receiver = FrameReceiver(reader)
        self.receiver.started = True

    def open(self, channel_class: type[Channel], number: int) -> Channel:
        async def consume(message: DeliveredMessage) -> None:
            self.delivered.append((number, message.delivery_tag, message.body))

        channel = channel_class(cast("AbstractConnection", self), number, frame_buffer=3)
        channel.consumers[CONSUMER] = consume
        for tag in range(1, PUBLISHED + 1):
            channel.confirmations[tag] = self.loop.create_future()
            channel.message_id_delivery_tag[str(tag)] = tag
        return channel

    def _future_store_child(self) -> FutureStore:
        return self.store.get_child()  # type: ignore[return-value]

    async def read(self) -> None:
        while True:
            size, number, frame = await read_frame(self.receiver)
            await self.channels[number].frames.put((size, frame))


def content(method: Any, body: bytes, part: int, **properties: Any) -> list[Any]:
    parts = [ContentBody(body[at : at + part]) for at in range(0, len(body), part)]
    return [method, ContentHeader(body_size=len(body), properties=Basic.Properties(**properties)), *parts]


TAGS = st.integers(1, PUBLISHED)
DELIVERIES = st.builds(
    lambda tag, consumer, body, part: content(Basic.Deliver(consumer, tag, False, "e", "r"), body, part),
    st.integers(1, 1000),
    st.sampled_from([CONSUMER, CONSUMER, UNKNOWN]),
    st.binary(max_size=40),
    st.integers(1, 50),
)
RETURNS = st.builds(
    lambda tag: [*content(Basic.Return(312, "NO_ROUTE", "e", "r"), b"body", 4, message_id=str(tag)), Basic.Ack(tag, False)], TAGS
)
CONFIRMS = st.builds(lambda frame, tag, multiple: [frame(tag, multiple)], st.sampled_from([Basic.Ack, Basic.Nack]), TAGS, st.booleans())
UNITS = st.lists(DELIVERIES | DELIVERIES | CONFIRMS | RETURNS, max_size=8)


def confirmed_once(units: list[list[Any]]) -> Iterator[list[Any]]:
    """Without the confirms of messages that have had theirs: a broker sends none."""
    waiting = {*range(1, PUBLISHED + 1)}
    for unit in units:
        confirm = unit[-1]
        if not isinstance(confirm, Basic.Ack | Basic.Nack):
            yield unit
        elif confirm.delivery_tag in waiting:
            yield unit
            waiting -= {tag for tag in waiting if tag == confirm.delivery_tag or (confirm.multiple and tag < confirm.delivery_tag)}


@st.composite
def streams(draw: Callable[..., Any]) -> list[bytes]:
    """The bytes of two channels, whose frames are mixed, cut anywhere."""
    left = {number: [frame for unit in confirmed_once(draw(UNITS)) for frame in unit] for number in (1, 2)}
    data, starts = b"", [0]
    while waiting := [number for number, frames in left.items() if frames]:
        number = draw(st.sampled_from(waiting))
        data += marshal(left[number].pop(0), number)
        starts.append(len(data))
    places = st.integers(0, len(data)) | st.builds(add, st.sampled_from(starts), st.sampled_from([0, 1, FRAME_START.size]))
    cuts = sorted({0, len(data), *(cut for cut in draw(st.lists(places, max_size=12)) if cut < len(data))})
    return [data[start:end] for start, end in pairwise(cuts)]


async def outcome(channel_class: type[Channel], reader: asyncio.StreamReader, chunks: list[bytes], pauses: list[int]) -> Any:
    connection = Connection(channel_class, reader)
    futures = {(number, tag): future for number, channel in connection.channels.items() for tag, future in channel.confirmations.items()}
    reading = asyncio.create_task(connection.read())
    for number, chunk in enumerate(chunks):
        reader.feed_data(chunk)
        for _ in range(pauses[number % len(pauses)]):
            await asyncio.sleep(0)
    for _ in range(60 + sum(map(len, chunks)) // 20):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    ends = {key: type(future.exception() or future.result()) if future.done() else None for key, future in futures.items()}
    for channel in connection.channels.values():
        await channel.close()
    by_channel = {number: [message for message in connection.delivered if message[0] == number] for number in (1, 2)}
    return by_channel, ends


@settings(deadline=None)
@given(streams(), st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_every_stream_ends_as_with_the_library_s_channel(chunks: list[bytes], pauses: list[int]) -> None:
    async def both() -> tuple[Any, Any]:
        direct = await outcome(DirectChannel, DirectReader(), chunks, pauses)
        return direct, await outcome(Channel, asyncio.StreamReader(), chunks, pauses)

    direct, library = asyncio.run(both())
    assert direct == library


def frames_of(tag: int, body: bytes = b"{}", consumer: str = CONSUMER) -> bytes:
    return b"".join(marshal(frame, 1) for frame in content(Basic.Deliver(consumer, tag, False, "e", "r"), body, 100))


async def start_reading(reader: DirectReader) -> tuple[Connection, DirectChannel, asyncio.Task[None]]:
    connection = Connection(DirectChannel, reader)
    reading = asyncio.create_task(connection.read())
    await asyncio.sleep(0)
    return connection, cast("DirectChannel", connection.channels[1]), reading


async def test_delivery_starts_its_task_in_the_turn_in_which_it_arrives() -> None:
    connection, channel, reading = await start_reading(reader := DirectReader())
    ended, tasks = [], InFlightTasks()

    async def on_message(message: AbstractIncomingMessage) -> None:
        ended.append(message.body)

    channel.consumers[CONSUMER] = partial(deliver, tasks.track(on_message), no_ack=False)
    reader.feed_data(frames_of(1) + frames_of(2, b"x"))
    assert (len(tasks.tasks), channel.newest_delivery) == (2, 2)
    await asyncio.sleep(0)
    assert ended == [b"{}", b"x"]
    assert connection._Connection__last_frame_time > 0  # type: ignore[attr-defined] # else the connection would be taken for stuck
    reading.cancel()


async def test_callback_with_an_attribute_start_of_its_own_is_called() -> None:
    """It is a user's: nothing but the deliveries of a worker have a task of their own."""
    _, channel, reading = await start_reading(reader := DirectReader())

    class Consumer:
        def __init__(self) -> None:
            self.taken = list[bytes]()

        def start(self, _: object) -> None:
            self.taken.append(b"started")

        async def __call__(self, message: AbstractIncomingMessage) -> None:
            self.taken.append(message.body)

    consumer = Consumer()
    channel.consumers[CONSUMER] = partial(deliver, consumer, no_ack=False)
    reader.feed_data(frames_of(1))
    await asyncio.sleep(0)
    assert consumer.taken == [b"{}"]
    reading.cancel()


async def test_cancelled_connection_starts_nothing() -> None:
    """Its frames are left in the reader, as by the library."""
    connection, _, reading = await start_reading(reader := DirectReader())
    reading.cancel()
    await asyncio.wait({reading})
    reader.feed_data(frames_of(1))
    for _ in range(10):
        await asyncio.sleep(0)
    assert connection.delivered == []


async def test_confirm_ends_its_publish_in_the_turn_in_which_it_arrives() -> None:
    _, channel, reading = await start_reading(reader := DirectReader())
    first = channel.confirmations[1]
    reader.feed_data(marshal(Basic.Ack(1, False), 1))
    assert first.done()
    reading.cancel()


async def test_closed_channel_starts_nothing() -> None:
    """The library does not either: the broker delivers the message again."""
    _, channel, reading = await start_reading(reader := DirectReader())
    started = list[bytes]()

    async def on_message(message: AbstractIncomingMessage) -> None:
        started.append(message.body)

    channel.consumers[CONSUMER] = partial(deliver, InFlightTasks().track(on_message), no_ack=False)
    await channel.close()
    reader.feed_data(frames_of(1))
    for _ in range(10):
        await asyncio.sleep(0)
    assert started == []
    reading.cancel()


async def test_what_waits_in_the_buffer_is_not_overtaken() -> None:
    """A refusal that the connection has not read yet, then a confirm of the same number in another segment."""
    _, channel, reading = await start_reading(reader := DirectReader())
    first = channel.confirmations[1]
    reader.feed_data(marshal(Basic.Nack(1, False), 1))
    reader.feed_data(marshal(Basic.Ack(1, False), 1))
    await asyncio.wait({first})
    assert isinstance(first.exception(), DeliveryError)
    reading.cancel()


async def test_payload_that_looks_like_a_frame_is_none() -> None:
    """The connection has read the start of a body, whose bytes come later."""
    connection, channel, reading = await start_reading(reader := DirectReader())
    body = marshal(Basic.Ack(1, False), 1)
    data = frames_of(1, body)
    at = data.index(body)
    reader.feed_data(marshal(Basic.Nack(6, False), 1))  # so that the delivery is read by the connection
    reader.feed_data(data[:at])
    for _ in range(10):
        await asyncio.sleep(0)
    reader.feed_data(data[at:])
    for _ in range(10):
        await asyncio.sleep(0)
    assert (connection.delivered, channel.confirmations[1].done()) == ([(1, 1, body)], False)
    reading.cancel()


async def test_consumer_that_cannot_start_ends_no_connection() -> None:
    connection, channel, reading = await start_reading(reader := DirectReader())

    def fail(_: DeliveredMessage) -> Any:
        raise RuntimeError("no task")

    channel.consumers["broken"] = fail
    reader.feed_data(frames_of(1, consumer="broken") + frames_of(2))
    await asyncio.sleep(0)
    assert (connection.delivered, reading.done()) == ([(1, 2, b"{}")], False)
    reading.cancel()


@pytest.mark.parametrize("body", [b"", b"x"])
async def test_frame_that_does_not_belong_to_a_delivery_follows_it_to_the_library(body: bytes) -> None:
    """Which knows what to do with it: here it closes the channel, as for any frame out of order."""
    _, channel, reading = await start_reading(reader := DirectReader())
    reader.feed_data(marshal(Basic.Deliver(CONSUMER, 1, False, "e", "r"), 1) + marshal(Basic.Ack(1, False), 1) + frames_of(2, body))
    for _ in range(20):
        await asyncio.sleep(0)
    assert channel.is_closed
    reading.cancel()
