"""A blocked broker: unconfirmed messages stay with their callers, and do not accumulate in this process."""

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher, open_publisher
from bus.errors import PublishError
from bus.settings import BusSettings
from tests.support.tcp_proxy import open_proxy

MESSAGES, MEGABYTE = 40, 1_000_000


async def test_blocked_broker_bounds_publisher_memory(bus_settings: BusSettings) -> None:
    url = bus_settings.broker_url
    async with open_proxy(urlsplit(url).port or 0) as proxy:
        proxied_url = url.replace(urlsplit(url).netloc.rpartition("@")[2], f"127.0.0.1:{proxy.port}")
        settings = BusSettings.model_validate(bus_settings.model_dump() | {"amqp_url": proxied_url, "publish_timeout_seconds": 3.0})
        async with open_publisher(settings) as publisher:
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
