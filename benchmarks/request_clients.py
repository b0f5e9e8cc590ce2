"""The clients of the gateway benchmark: bare aio-pika, FastStream, our bus client and HTTP. Each sends a request and awaits the reply."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from faststream.rabbit import RabbitBroker, RabbitExchange

from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import open_request_client
from bus.settings import BusSettings
from contracts import broker_names

SendRequest = Callable[[str, dict[str, Any]], Coroutine[Any, Any, Any]]
"""Takes a step and a body, returns the reply's body."""

REQUEST_TIMEOUT_SECONDS = 600.0


@asynccontextmanager
async def open_aio_pika(settings: BusSettings) -> AsyncIterator[SendRequest]:
    """One reply queue and a map of futures. Commands are persistent and confirmed, as our own client's are."""
    pending_replies: dict[str, asyncio.Future[bytes]] = {}

    async def on_reply(message: AbstractIncomingMessage) -> None:
        pending_replies[message.correlation_id or ""].set_result(message.body)

    async with await aio_pika.connect(settings.broker_url) as connection:
        publishing, consuming = await connection.channel(), await connection.channel()
        exchange = await publishing.get_exchange(broker_names.COMMANDS_EXCHANGE, ensure=False)
        queue = await consuming.declare_queue(exclusive=True)
        await queue.consume(on_reply, no_ack=True)

        async def request(step: str, body: dict[str, Any]) -> Any:
            correlation_id = str(uuid4())
            reply = pending_replies[correlation_id] = asyncio.get_running_loop().create_future()
            message = aio_pika.Message(json.dumps(body).encode(), correlation_id=correlation_id, reply_to=queue.name, delivery_mode=2)
            await exchange.publish(message, step)
            try:
                return json.loads(await reply)
            finally:
                del pending_replies[correlation_id]

        yield request


@asynccontextmanager
async def open_faststream(settings: BusSettings) -> AsyncIterator[SendRequest]:
    async with RabbitBroker(settings.broker_url, logger=None) as broker:
        exchange = RabbitExchange(broker_names.COMMANDS_EXCHANGE, declare=False)

        async def request(step: str, body: dict[str, Any]) -> Any:
            reply = await broker.request(body, routing_key=step, exchange=exchange, timeout=REQUEST_TIMEOUT_SECONDS, persist=True)
            return await reply.decode()

        yield request


@asynccontextmanager
async def open_bus(settings: BusSettings) -> AsyncIterator[SendRequest]:
    async with open_publisher(settings) as publisher, open_request_client(publisher) as requests:

        async def request(step: str, body: dict[str, Any]) -> Any:
            return await requests.request(step, body, seconds=REQUEST_TIMEOUT_SECONDS)

        yield request


class HttpConnection:
    """A minimal HTTP/1.1 client on one persistent connection, so that the gateway is what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        data = b"" if body is None else json.dumps(body).encode()
        head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(data)}"]
        writer.write("\r\n".join([*head, "", ""]).encode() + data)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        return int(lines[0].split()[1]), await reader.readexactly(length)

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
