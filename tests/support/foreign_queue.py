"""A queue of another system whose messages die, and messages with a value of every type that the protocol has."""

import asyncio
import struct
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from bus.amqp.raw_properties import RawProperties
from tests.support.broker_client import BrokerClient
from tests.support.hostile_messages import DECODABLE_FIELDS, HostileMessage, entry, long, publish_all, short, table

WRITTEN_ANEW = ("bool 255", "int64 min")
"""Encodings with another one of the same value, which the broker writes when it adds a header of its own."""
TYPED_HEADERS = table(
    # Values of which a client library, JSON or a table of its own loses something: the width, the sign, the digits, the type, the bytes.
    *(entry(name, field) for name, field in DECODABLE_FIELDS.items() if len(field) < 1000 and name not in WRITTEN_ANEW),
    entry("twice", b"t\x01"),
    entry("twice", b"S" + long(b"the second")),
    entry("x-theirs", b"S" + long(b"a header of the publisher")),
    entry("x-retry-count", b"l" + struct.pack(">q", 2**53 + 1)),
    entry("price", b"d" + struct.pack(">d", 0.1 + 0.2)),
    entry("amount", b"D\x02\x00\x01\xe2\x40"),
    entry("sent-at", b"T" + struct.pack(">Q", 1_790_000_000)),
)
PROPERTIES = {
    "content_type": short(b"application/x-thing"),
    "content_encoding": short(b"identity"),
    "headers": TYPED_HEADERS,
    "delivery_mode": b"\x01",
    "priority": b"\x07",
    "correlation_id": short("주문-1".encode()),
    "expiration": short(b"3600000"),
    "timestamp": struct.pack(">Q", 1_790_000_000),
    "type": short(b"order.placed"),
    "app_id": short(b"shop"),
    "cluster_id": short(b"c"),
}
BODY = b"\x00\xff not JSON \xe2"


class ForeignQueue:
    """A queue of another system that dead-letters into one that is ingested."""

    def __init__(self, broker_client: BrokerClient, amqp_url: str) -> None:
        self.broker_client, self._url = broker_client, amqp_url
        self.user = (urlsplit(amqp_url).username or "").encode()
        self.name, self.dead = f"orders-{uuid4().hex[:6]}", f"orders-dlq-{uuid4().hex[:6]}"

    async def declare(self) -> None:
        """Without a routing key of its own for dead letters: with one, the broker takes CC off."""
        arguments: dict[str, Any] = {"x-dead-letter-exchange": self.dead}
        exchange = await self.broker_client.channel.declare_exchange(self.dead, "fanout", durable=True)
        await (await self.broker_client.channel.declare_queue(self.dead, durable=True)).bind(exchange)
        await self.broker_client.channel.declare_queue(self.name, durable=True, arguments=arguments)

    async def die(self, properties: bytes, body: bytes = BODY) -> RawProperties:
        """Publish a message and reject it. Returns its properties."""
        await asyncio.to_thread(publish_all, self._url, [HostileMessage("", properties, body, None)], self.name)
        await (await (await self.broker_client.channel.get_queue(self.name)).get(timeout=5)).reject(requeue=False)
        return RawProperties.parse(properties)


def values_of(raw: RawProperties) -> dict[str, bytes]:
    """Every value by its name, encoded; those of a repeated header one after another. A quorum queue adds a count at each delivery."""
    values = dict(raw.values)
    for name, field in raw.without_headers(["x-delivery-count"]).headers or ():
        values[f"header {name.decode()}"] = values.get(f"header {name.decode()}", b"") + field
    return values
