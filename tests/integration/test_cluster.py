"""A cluster of three nodes loses one node after the other under load, but no confirmed message."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from itertools import count, cycle
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from bus.amqp.topology import QUORUM_ARGUMENTS
from ops.local.rabbitmq_install import find_or_install_rabbitmq
from ops.settings import LocalSettings
from tests.support.rabbitmq_cluster import RabbitCluster

QUEUE = "atelier.cluster-test"
UNAVAILABLE_ERRORS = (aio_pika.exceptions.AMQPError, aio_pika.exceptions.ChannelInvalidStateError, OSError, TimeoutError, RuntimeError)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RabbitCluster]:
    cluster = RabbitCluster(tmp_path, find_or_install_rabbitmq(LocalSettings()))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class ClusterLoad:
    """A publisher and a consumer that connect to the next node when theirs is unavailable."""

    def __init__(self, urls: list[str]) -> None:
        self._urls, self._numbers, self._stopped = urls, count(), False
        self.confirmed: set[int] = set()
        self.consumed: set[int] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run both inside the block. A flag stops them, since a lost connection may swallow their cancellation."""
        tasks = [asyncio.create_task(self.publish()), asyncio.create_task(self.consume())]
        try:
            yield
        finally:
            self._stopped = True
            _, unfinished = await asyncio.wait(tasks, timeout=10)
            for task in unfinished:
                task.cancel()

    async def publish(self) -> None:
        async for channel in self._channels(cycle(self._urls)):
            with contextlib.suppress(*UNAVAILABLE_ERRORS):
                while not self._stopped:
                    number = next(self._numbers)
                    message = aio_pika.Message(str(number).encode(), delivery_mode=2)
                    async with asyncio.timeout(5):
                        await channel.default_exchange.publish(message, QUEUE, mandatory=True)
                    self.confirmed.add(number)
                    await asyncio.sleep(0.002)

    async def consume(self) -> None:
        async for channel in self._channels(cycle(self._urls[::-1])):
            with contextlib.suppress(*UNAVAILABLE_ERRORS):
                queue = await channel.get_queue(QUEUE, ensure=False)
                while not self._stopped:
                    async with asyncio.timeout(5):
                        message = await queue.get(fail=False)
                    if message is None:
                        await asyncio.sleep(0.02)
                        continue
                    self.consumed.add(int(message.body))
                    await message.ack()

    async def _channels(self, urls: Iterator[str]) -> AsyncIterator[AbstractChannel]:
        for url in urls:
            if self._stopped:
                return
            try:
                async with asyncio.timeout(5):
                    connection = await aio_pika.connect(url)
            except UNAVAILABLE_ERRORS:
                await asyncio.sleep(0.1)
                continue
            async with connection:
                yield await connection.channel()

    async def wait_for_progress(self, messages: int, seconds: float = 60) -> None:
        """Wait until `messages` more are confirmed."""
        goal = len(self.confirmed) + messages
        async with asyncio.timeout(seconds):
            while len(self.confirmed) < goal:
                await asyncio.sleep(0.05)


async def wait_until_queue_is_available(url: str) -> None:
    """Wait until the queue can be reached through this node."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(*UNAVAILABLE_ERRORS):
                async with await aio_pika.connect(url) as connection:
                    channel = await connection.channel()
                    await channel.declare_queue(QUEUE, durable=True, arguments=QUORUM_ARGUMENTS, passive=True)
                    return
            await asyncio.sleep(0.2)


@pytest.mark.timeout(400)
async def test_node_loss_under_load_loses_no_message(cluster: RabbitCluster) -> None:
    async with await aio_pika.connect(cluster.urls[0]) as connection:
        channel = await connection.channel()
        await channel.declare_queue(QUEUE, durable=True, arguments=QUORUM_ARGUMENTS)
    load = ClusterLoad(cluster.urls)
    async with load.running():
        for node in cluster.nodes:
            await load.wait_for_progress(50)
            await asyncio.to_thread(node.kill)
            await load.wait_for_progress(50)
            await asyncio.to_thread(node.start)
            await wait_until_queue_is_available(node.url)
            await asyncio.sleep(1)  # the node synchronises before the next one is killed
        confirmed = set(load.confirmed)
        async with asyncio.timeout(30):
            while confirmed - load.consumed:
                await asyncio.sleep(0.1)
    assert len(confirmed) >= 300
