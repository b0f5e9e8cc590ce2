"""A broker that takes nothing: what it has not confirmed stays with its callers, and does not pile up in this process."""

import asyncio
from urllib.parse import urlsplit

import psutil

from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher, open_publisher
from bus.errors import PublishError
from bus.settings import BusSettings
from tests.support.tcp_proxy import open_proxy

LETTERS, MEGABYTE = 40, 1_000_000


async def test_blocked_broker_bounds_publisher_memory(bus_settings: BusSettings) -> None:
    url = bus_settings.broker_url
    process = psutil.Process()
    async with open_proxy(urlsplit(url).port or 0) as line:
        here = url.replace(urlsplit(url).netloc.rpartition("@")[2], f"127.0.0.1:{line.port}")
        slow = BusSettings.model_validate(bus_settings.model_dump() | {"amqp_url": here, "publish_timeout_seconds": 3.0})
        async with open_publisher(slow) as outbox:
            assert await confirmed(outbox) == LETTERS
            line.flow_enabled.clear()
            assert await confirmed(outbox) == 0
            before = process.memory_info().rss
            assert [await confirmed(outbox) for _ in range(2)] == [0, 0]
            grown = process.memory_info().rss - before
            line.flow_enabled.set()
            async with asyncio.timeout(30):
                while not await confirmed(outbox, 1):
                    await asyncio.sleep(0.1)
    assert grown < 0.5 * LETTERS * MEGABYTE


async def confirmed(outbox: Publisher, letters: int = LETTERS) -> int:
    """How many of so many letters, all at once, the broker confirms. They go to an exchange without a queue."""
    written = [OutboundMessage("amq.fanout", "", bytes(MEGABYTE), f"letter-{number}", "job", "echo.v1") for number in range(letters)]
    said = await asyncio.gather(*(outbox.publish(letter) for letter in written), return_exceptions=True)
    assert all(one is None or isinstance(one, PublishError) for one in said)
    return said.count(None)
