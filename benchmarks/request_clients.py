"""The clients of the gateway benchmark: bare aio-pika, FastStream, our bus client and HTTP. Each sends a request and awaits the reply.

Each runs in a process of its own (`request_processes.py`). Nothing of `bus` is imported here at the top: a connection of the bus
patches the client library of its process (decision 20), also for bare aio-pika.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from contracts import broker_names

SendRequest = Callable[[str, dict[str, Any]], Coroutine[Any, Any, Any]]
"""Takes a step and a body, returns the reply's body."""

REQUEST_TIMEOUT_SECONDS = 600.0
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class ClientConfig:
    """`port`: of the gateway."""

    amqp_url: str
    port: int
    callers: int


@asynccontextmanager
async def open_aio_pika(config: ClientConfig) -> AsyncIterator[Sequence[SendRequest]]:
    """One reply queue and a map of futures. Commands are persistent and confirmed, as our own client's are."""
    pending_replies: dict[str, asyncio.Future[bytes]] = {}

    async def on_reply(message: AbstractIncomingMessage) -> None:
        pending_replies[message.correlation_id or ""].set_result(message.body)

    async with await aio_pika.connect(config.amqp_url) as connection:
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

        yield [request] * config.callers


@asynccontextmanager
async def open_faststream(config: ClientConfig) -> AsyncIterator[Sequence[SendRequest]]:
    from faststream.rabbit import RabbitBroker, RabbitExchange

    async with RabbitBroker(config.amqp_url, logger=None) as broker:
        exchange = RabbitExchange(broker_names.COMMANDS_EXCHANGE, declare=False)

        async def request(step: str, body: dict[str, Any]) -> Any:
            reply = await broker.request(body, routing_key=step, exchange=exchange, timeout=REQUEST_TIMEOUT_SECONDS, persist=True)
            return await reply.decode()

        yield [request] * config.callers


@asynccontextmanager
async def open_bus(config: ClientConfig) -> AsyncIterator[Sequence[SendRequest]]:
    from bus.amqp.publisher import open_publisher
    from bus.amqp.request_reply import open_request_client
    from bus.settings import BusSettings

    settings = BusSettings.model_validate({"amqp_url": config.amqp_url, "publish_timeout_seconds": 60.0})
    async with open_publisher(settings) as publisher, open_request_client(publisher) as requests:

        async def request(step: str, body: dict[str, Any]) -> Any:
            return await requests.request(step, body, seconds=REQUEST_TIMEOUT_SECONDS)

        yield [request] * config.callers


@asynccontextmanager
async def open_http(config: ClientConfig) -> AsyncIterator[Sequence[SendRequest]]:
    """A connection for each caller."""
    connections = [HttpConnection(config.port) for _ in range(config.callers)]
    yield [http_request(connection) for connection in connections]
    for connection in connections:
        connection.close()


def http_request(connection: "HttpConnection") -> SendRequest:
    async def request(step: str, body: dict[str, Any]) -> Any:
        """A `job.get` with its job's path, any other step as a job whose result is waited for."""
        if step == "job.get":
            status, response = await connection.request("GET", f"/jobs/{body['job_id']}")
        else:
            order = {"kind": "itinerary", "stops": [{"step": step, "arguments": body}]}
            status, response = await connection.request("POST", "/jobs?wait=60", order)
        if status != 200:
            raise RuntimeError(f"the gateway answered {status}: {response[:500]!r}")
        return json.loads(response)

    return request


OPENERS: Mapping[str, Callable[[ClientConfig], AbstractAsyncContextManager[Sequence[SendRequest]]]] = {
    "aio_pika": open_aio_pika,
    "bus": open_bus,
    "http": open_http,
    "faststream_request": open_faststream,
}
"""Each opens its connections and yields what each caller calls."""


class HttpConnection(asyncio.Protocol):
    """A minimal HTTP/1.1 client on one persistent connection, so that the gateway is what is measured: one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._response: asyncio.Future[tuple[int, bytes]] | None = None

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body. Raises ConnectionError when the connection ends before."""
        loop = asyncio.get_running_loop()
        if self._transport is None:
            self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self._response = loop.create_future()
        self._transport.write(head.encode() + data)
        return await self._response

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(head)
        if not end or self._response is None or self._response.done():
            return
        if length is None:
            self._response.set_exception(ValueError(f"a response without a Content-Length: {head[:200]!r}"))
        elif len(body) >= int(length[1]):
            self._received = b""
            self._response.set_result((int(head.split(b" ", 2)[1]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._response and not self._response.done():
            self._response.set_exception(exc or ConnectionError("the gateway closed the connection"))

    def close(self) -> None:
        if self._transport:
            self._transport.close()
