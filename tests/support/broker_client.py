"""A client that publishes commands and reads replies, events and queues on the real broker; and an echo actor."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from bus.actor import Actor, Handler, Resources
from contracts import broker_names
from contracts.steps import COMMANDS, EVENT_STEPS
from contracts.wire import Command, Result


class Echo(Command):
    text: str


class Echoed(Result):
    text: str


def echo_actor(handle: Handler, **limits: Any) -> Actor:
    """An actor with a step of its own."""

    @asynccontextmanager
    async def open_echo(resources: Resources) -> AsyncIterator[Handler]:
        yield handle

    limits = {"timeout_seconds": 5.0, "prefetch": 16} | limits
    return Actor(step=f"echo-{uuid4().hex[:8]}", command=Echo, result=Echoed, open=open_echo, **limits)


StartWorker = Callable[..., AbstractAsyncContextManager[str | None]]


class BrokerClient:
    """Publishes as a backend would; collects replies and events."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.replies: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        self.reply_queue = ""

    async def publish(self, step: str, body: Any, *, exchange: str = broker_names.COMMANDS_EXCHANGE, **properties: Any) -> str:
        """Publish a command; returns its message id."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        properties = {"message_id": uuid4().hex, "delivery_mode": 2} | properties
        target = await self.channel.get_exchange(exchange, ensure=False) if exchange else self.channel.default_exchange
        await target.publish(aio_pika.Message(data, **properties), step)
        return str(properties["message_id"])

    async def next_reply(self, seconds: float = 10) -> tuple[str | None, Any]:
        """The next reply: its type and body."""
        message = await asyncio.wait_for(self.replies.get(), seconds)
        return message.type, json.loads(message.body)

    async def take_message(self, queue: str, seconds: float = 10) -> AbstractIncomingMessage:
        """The next message of a queue, taken out of it."""
        source = await self.channel.get_queue(queue, ensure=False)
        async with asyncio.timeout(seconds):
            while (message := await source.get(fail=False, no_ack=True)) is None:
                await asyncio.sleep(0.02)
        return message

    async def subscribe_events(self, key: str) -> "asyncio.Queue[dict[str, Any]]":
        """A queue of the events from now on whose routing key matches."""
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(broker_names.EVENTS_EXCHANGE, key)
        await queue.consume(partial(_collect_event, events), no_ack=True)
        return events


async def _collect_event(events: "asyncio.Queue[dict[str, Any]]", message: AbstractIncomingMessage) -> None:
    events.put_nowait(json.loads(message.body))


async def purge_queues(connection: AbstractConnection) -> None:
    """Purge the queues that all tests share, so that no message of another test is processed."""
    steps = [*COMMANDS, *EVENT_STEPS]
    delay_queues = [broker_names.retry_exchange(delay) for delay in (0.1, 0.2, 0.5)]
    dead = map(broker_names.dead_letter_queue, [*steps, broker_names.IMAGE_GENERATION_QUEUE])
    channel = await connection.channel()
    for name in [*map(broker_names.work_queue, steps), *dead, *delay_queues, broker_names.IMAGE_GENERATION_QUEUE]:
        try:
            await (await channel.get_queue(name)).purge()
        except aio_pika.exceptions.ChannelNotFoundEntity:
            channel = await connection.channel()


async def wait_until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Wait until the condition holds; raises TimeoutError when it does not in time."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)
