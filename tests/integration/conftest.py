"""A workshop in this very process, on the real broker and database; and a customer who sends commands and reads what comes of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from actors.engines.tiny_llama import write_llama
from bus.actor import Actor, Handler, Tools
from bus.serve import open_workshop
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from contracts import channels
from contracts.steps import COMMANDS
from contracts.wire import Command, Result
from tests.vllm_server import VllmServer, vllm_python, vllm_server


class Echo(Command):
    text: str


class Echoed(Result):
    text: str


def echo_actor(handle: Handler, **limits: Any) -> Actor:
    """An actor of a step that no other test has."""

    @asynccontextmanager
    async def open_echo(tools: Tools) -> AsyncIterator[Handler]:
        yield handle

    limits = {"timeout_seconds": 5.0, "prefetch": 16} | limits
    return Actor(step=f"echo-{uuid4().hex[:8]}", command=Echo, result=Echoed, open=open_echo, **limits)


@pytest.fixture
def bus_settings(amqp_url: str, database_url: str) -> BusSettings:
    return BusSettings.model_validate(
        {
            "amqp_url": amqp_url,
            "database_url": database_url,
            "retry_delays_seconds": (0.1, 0.2),
            "long_delays_seconds": (0.5,),
            "publish_timeout_seconds": 5.0,
            "grace_seconds": 5.0,
        }
    )


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The real vLLM with a tiny Llama of random weights, for all tests that write; slow enough to be left in the middle of an answer."""
    vllm_python()
    folder = tmp_path_factory.mktemp("vllm")
    write_llama(folder / "tiny-llama", layers=8)
    with vllm_server(folder / "tiny-llama", folder / "log.txt") as running:
        yield running


Workshop = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def workshop(bus_settings: BusSettings, store_folder: Path) -> Workshop:
    """`async with workshop(actor, …):` serves the actors."""

    def opened(*actors: Actor, settings: BusSettings = bus_settings, adapters: Any = ()) -> AbstractAsyncContextManager[None]:
        return open_workshop(actors, adapters, settings, StoreSettings(store_url=store_folder.as_uri()))

    return opened


class Customer:
    """Publishes as a backend would, in three lines; and binds queues to what happens."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.replies: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        self.reply_queue = ""

    async def send(self, step: str, body: Any, *, exchange: str = channels.COMMANDS, **properties: Any) -> str:
        """Publish a command; returns its message id."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        properties = {"message_id": uuid4().hex, "delivery_mode": 2} | properties
        target = await self.channel.get_exchange(exchange, ensure=False) if exchange else self.channel.default_exchange
        await target.publish(aio_pika.Message(data, **properties), step)
        return str(properties["message_id"])

    async def reply(self, seconds: float = 10) -> tuple[str | None, Any]:
        """The next reply: its type and body."""
        message = await asyncio.wait_for(self.replies.get(), seconds)
        return message.type, json.loads(message.body)

    async def letter_in(self, queue: str, seconds: float = 10) -> AbstractIncomingMessage:
        """The next message of a queue, taken out of it."""
        source = await self.channel.get_queue(queue, ensure=False)
        async with asyncio.timeout(seconds):
            while (message := await source.get(fail=False, no_ack=True)) is None:
                await asyncio.sleep(0.02)
        return message

    async def events(self, key: str) -> "asyncio.Queue[dict[str, Any]]":
        """Every event from now on whose key matches."""
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(channels.EVENTS, key)
        await queue.consume(partial(_hear, heard), no_ack=True)
        return heard


async def _hear(heard: "asyncio.Queue[dict[str, Any]]", message: AbstractIncomingMessage) -> None:
    heard.put_nowait(json.loads(message.body))


async def empty(connection: AbstractConnection) -> None:
    """Take away what other tests left in the queues that all tests share: the next test's actors would do it."""
    steps = [*COMMANDS, "ledger"]
    rungs = [channels.retry_exchange(delay) for delay in (0.1, 0.2, 0.5)]
    dead = map(channels.dead_queue, [*steps, channels.IMAGE_GENERATION])
    channel = await connection.channel()
    for name in [*map(channels.work_queue, steps), *dead, *rungs, channels.IMAGE_GENERATION]:
        try:
            await (await channel.get_queue(name)).purge()
        except aio_pika.exceptions.ChannelNotFoundEntity:
            channel = await connection.channel()


@pytest.fixture
async def customer(amqp_url: str) -> AsyncIterator[Customer]:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        await empty(connection)
        customer = Customer(await connection.channel())
        queue = await customer.channel.declare_queue(exclusive=True)
        customer.reply_queue = queue.name

        async def take(message: AbstractIncomingMessage) -> None:
            customer.replies.put_nowait(message)

        await queue.consume(take, no_ack=True)
        yield customer


async def soon(fact: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Wait until a fact holds; fail when it does not in time."""
    async with asyncio.timeout(seconds):
        while not await fact():
            await asyncio.sleep(0.05)
