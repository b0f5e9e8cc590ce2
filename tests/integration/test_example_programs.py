"""The programs in README.md, docs/backend.md and docs/consumer.md, run as they stand: two publish orders, the third reads their events."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from actors.adapters.image_generation import build_adapter
from bus.observability.probes import probe_queues
from bus.settings import BusSettings
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR

ROOT = Path(__file__).parents[2]
PUBLISHERS = {"README.md": "generation-501", "docs/backend.md": "generation-500"}


def program(page: str) -> str:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return str(code)


@pytest.mark.parametrize(("page", "job_id"), PUBLISHERS.items(), ids=PUBLISHERS)
async def test_example_publishes_order_and_receives_events(
    start_worker: StartWorker, bus_settings: BusSettings, broker_client: BrokerClient, page: str, job_id: str
) -> None:
    url = bus_settings.amqp_url.get_secret_value()
    environment = os.environ | {"AMQP_URL": url}
    async with start_worker(FAKE_IMAGE_ACTOR, adapters=[build_adapter()]):
        consumer = await asyncio.create_subprocess_exec(sys.executable, "-c", program("docs/consumer.md"), env=environment, stdout=PIPE)
        try:

            async def listening() -> bool:
                read = (await probe_queues(url, ["my-events"]))["my-events"]
                return read is not None and read.consumers == 1

            await wait_until(listening, seconds=20)
            backend = await asyncio.create_subprocess_exec(sys.executable, "-c", program(page), env=environment)
            assert await asyncio.wait_for(backend.wait(), 20) == 0
            lines = await read_until(f"image completed {job_id}", consumer)
        finally:
            consumer.kill()
            await consumer.communicate()
            await broker_client.channel.queue_delete("my-events")
    assert lines[0] == f"job accepted {job_id}"
    assert f"image progress {job_id}" in lines


async def read_until(last: str, consumer: asyncio.subprocess.Process) -> list[str]:
    assert consumer.stdout
    lines: list[str] = []
    async with asyncio.timeout(20):
        while last not in lines:
            lines.append((await consumer.stdout.readline()).decode().strip())
    return lines
