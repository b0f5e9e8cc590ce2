"""A channel that the broker closes: neither acks nor publishes that come at that moment end the connection."""

import asyncio
from contextlib import suppress

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from aiormq.abc import AbstractChannel

from bus.amqp import acknowledgements, confirms
from bus.amqp.raw_properties import encode_properties
from bus.amqp.short_paths import use_short_paths

UNKNOWN_TAG = 10**6
TURNS = 2000
"""Of the event loop, in which the channel is closed: the broker's answer takes some hundred."""


async def publish(channel: AbstractChannel, queue: str, message_id: str) -> None:
    properties = encode_properties(message_id=message_id)
    await confirms.publish(channel, b"{}", properties, exchange="", routing_key=queue, mandatory=True, message_id=message_id)


@pytest.mark.parametrize("what", ["acks", "publishes"])
async def test_frames_for_a_channel_that_is_being_closed_leave_its_connection(amqp_url: str, what: str) -> None:
    use_short_paths()
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        delivered: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(delivered.put)
        await channel.default_exchange.publish(aio_pika.Message(b"{}"), queue.name)
        message = await delivered.get()
        library_channel = await channel.get_underlay_channel()
        await library_channel.basic_ack(UNKNOWN_TAG)
        publishes = []
        for number in range(TURNS):
            if what == "acks":
                acknowledgements.ack(message)
            else:
                publishes.append(asyncio.create_task(publish(library_channel, queue.name, str(number))))
            await asyncio.sleep(0)
        for task in publishes:
            with suppress(AMQPError, ChannelInvalidStateError):
                await asyncio.wait_for(task, 20)
        assert library_channel.is_closed
        other = await connection.channel()
        assert (await other.declare_queue(exclusive=True)).name
