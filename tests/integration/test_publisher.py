"""Every publish ends: with its confirm, its return, or an error when the broker is blocked or the connection is lost."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher, open_publisher
from bus.errors import PublishError, UnroutableMessage
from bus.settings import BusSettings
from tests.support.tcp_proxy import TcpProxy, open_proxy

MESSAGES, MEGABYTE = 40, 1_000_000


async def test_blocked_broker_bounds_publisher_memory(bus_settings: BusSettings) -> None:
    async with open_publisher_through_proxy(bus_settings, 3.0) as (publisher, proxy):
        assert await count_confirmed(publisher) == MESSAGES
        proxy.flow_enabled.clear()
        with traced_memory() as traced_bytes:
            assert await count_confirmed(publisher) == 0
            before = traced_bytes()
            assert [await count_confirmed(publisher) for _ in range(2)] == [0, 0]
            growth = traced_bytes() - before
        proxy.flow_enabled.set()
        async with asyncio.timeout(30):
            while not await count_confirmed(publisher, 1):
                await asyncio.sleep(0.1)
    assert growth < MESSAGES * MEGABYTE, "two rounds of unconfirmed messages were kept"


async def test_lost_connection_ends_the_wait_for_confirms(bus_settings: BusSettings) -> None:
    """With the error of the connection, long before the time of a publish is up; then the publisher publishes on the next connection."""
    async with open_publisher_through_proxy(bus_settings, 120.0) as (publisher, proxy):
        proxy.flow_enabled.clear()
        unconfirmed = asyncio.create_task(count_confirmed(publisher, 3))
        await asyncio.sleep(0.1)
        assert not unconfirmed.done()
        proxy.abort_connections()
        proxy.flow_enabled.set()
        async with asyncio.timeout(60):
            assert await unconfirmed == 0
            while not await count_confirmed(publisher, 1):
                await asyncio.sleep(0.1)


async def test_many_publishes_at_once_are_each_confirmed_or_returned(bus_settings: BusSettings) -> None:
    """Every third one is mandatory, and no queue takes it."""
    messages = [OutboundMessage("amq.fanout", "", b"{}", f"m-{n}", "job", "echo.v1", mandatory=n % 3 == 0) for n in range(600)]
    async with open_publisher(bus_settings) as publisher:
        results = await asyncio.gather(*(publisher.publish(message) for message in messages), return_exceptions=True)
    assert [type(result) for result in results] == [UnroutableMessage if message.mandatory else type(None) for message in messages]


@asynccontextmanager
async def open_publisher_through_proxy(
    bus_settings: BusSettings, publish_timeout_seconds: float
) -> AsyncIterator[tuple[Publisher, TcpProxy]]:
    url = bus_settings.broker_url
    async with open_proxy(urlsplit(url).port or 0) as proxy:
        proxied_url = url.replace(urlsplit(url).netloc.rpartition("@")[2], f"127.0.0.1:{proxy.port}")
        values = {"amqp_url": proxied_url, "publish_timeout_seconds": publish_timeout_seconds}
        async with open_publisher(BusSettings.model_validate(bus_settings.model_dump() | values)) as publisher:
            yield publisher, proxy


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Count the bytes that Python allocated inside the block and still holds; the resident size has what the allocator keeps, too."""

    def traced_bytes() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        yield traced_bytes
    finally:
        tracemalloc.stop()


async def count_confirmed(publisher: Publisher, count: int = MESSAGES) -> int:
    """How many of `count` concurrent publishes the broker confirms. The exchange has no queue."""
    messages = [OutboundMessage("amq.fanout", "", bytes(MEGABYTE), f"message-{number}", "job", "echo.v1") for number in range(count)]
    results = await asyncio.gather(*(publisher.publish(message) for message in messages), return_exceptions=True)
    assert all(result is None or isinstance(result, PublishError) for result in results)
    return results.count(None)
