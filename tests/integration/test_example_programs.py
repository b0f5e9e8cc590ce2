"""The programs in docs/backend.md and docs/consumer.md, run as they stand there: one publishes an order, the other hears of it."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from actors.adapters.image_generation import ADAPTER
from bus.observability.probes import probe_queues
from bus.settings import BusSettings
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR

DOCS = Path(__file__).parents[2] / "docs"


def program(page: str) -> str:
    [found] = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return str(found)


async def test_example_publishes_order_and_receives_events(
    start_worker: StartWorker, bus_settings: BusSettings, broker_client: BrokerClient
) -> None:
    url = bus_settings.amqp_url.get_secret_value()
    environment = os.environ | {"AMQP_URL": url}
    async with start_worker(FAKE_IMAGE_ACTOR, adapters=[ADAPTER]):
        consumer = await asyncio.create_subprocess_exec(sys.executable, "-c", program("consumer.md"), env=environment, stdout=PIPE)
        try:

            async def listening() -> bool:
                read = (await probe_queues(url, ["my-events"]))["my-events"]
                return read is not None and read.consumers == 1

            await wait_until(listening, seconds=20)
            backend = await asyncio.create_subprocess_exec(sys.executable, "-c", program("backend.md"), env=environment)
            assert await asyncio.wait_for(backend.wait(), 20) == 0
            heard = await read_until("image completed generation-500", consumer)
        finally:
            consumer.kill()
            await consumer.communicate()
            await broker_client.channel.queue_delete("my-events")
    assert heard[0] == "job accepted generation-500"
    assert "image progress generation-500" in heard


async def read_until(last: str, consumer: asyncio.subprocess.Process) -> list[str]:
    assert consumer.stdout
    heard: list[str] = []
    async with asyncio.timeout(20):
        while last not in heard:
            heard.append((await consumer.stdout.readline()).decode().strip())
    return heard
