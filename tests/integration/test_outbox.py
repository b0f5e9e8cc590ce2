"""A broker that takes nothing: what it has not confirmed stays with its callers, and does not pile up in this process."""

import asyncio
from urllib.parse import urlsplit

import psutil

from bus.errors import PublishError
from bus.letters import Letter
from bus.outbox import Outbox, open_outbox
from bus.settings import BusSettings
from tests.chaos.proxy import open_proxy

LETTERS, MEGABYTE = 40, 1_000_000


async def test_a_broker_that_takes_nothing_fills_the_memory_once_and_not_again(bus_settings: BusSettings) -> None:
    url = bus_settings.broker_url
    process = psutil.Process()
    async with open_proxy(urlsplit(url).port or 0) as line:
        here = url.replace(urlsplit(url).netloc.rpartition("@")[2], f"127.0.0.1:{line.port}")
        slow = BusSettings.model_validate(bus_settings.model_dump() | {"amqp_url": here, "publish_timeout_seconds": 3.0})
        async with open_outbox(slow) as outbox:
            assert await confirmed(outbox) == LETTERS
            line.flowing.clear()
            assert await confirmed(outbox) == 0
            before = process.memory_info().rss
            assert [await confirmed(outbox) for _ in range(2)] == [0, 0]
            grown = process.memory_info().rss - before
            line.flowing.set()
            async with asyncio.timeout(30):
                while not await confirmed(outbox, 1):
                    await asyncio.sleep(0.1)
    assert grown < 0.5 * LETTERS * MEGABYTE


async def confirmed(outbox: Outbox, letters: int = LETTERS) -> int:
    """How many of so many letters, all at once, the broker confirms. They go to an exchange without a queue."""
    written = [Letter("amq.fanout", "", bytes(MEGABYTE), f"letter-{number}", "job", "echo.v1") for number in range(letters)]
    said = await asyncio.gather(*(outbox.post(letter) for letter in written), return_exceptions=True)
    assert all(one is None or isinstance(one, PublishError) for one in said)
    return said.count(None)
