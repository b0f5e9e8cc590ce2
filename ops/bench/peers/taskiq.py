"""Taskiq over taskiq-aio-pika: acked when executed, quorum queue. It has no replies over RabbitMQ."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

from ops.bench.peers.run import Done, Place, Run, side_by_side


def made(place: Place) -> tuple[AioPikaBroker, Any]:
    done = Done()
    broker = AioPikaBroker(place.amqp_url, qos=place.in_flight, task_queues=[Queue(name=place.queue, type=QueueType.QUORUM)])

    @broker.task(queue_name=place.queue)
    async def take(run: str, of: int, pad: str) -> None:
        done.one(run, of)

    return broker, take


@asynccontextmanager
async def open_worker(place: Place) -> AsyncIterator[None]:
    broker, _ = made(place)
    broker.is_worker_process = True
    receiving = asyncio.create_task(
        run_receiver_task(broker, run_startup=True, max_async_tasks=place.in_flight, ack_time=AcknowledgeType.WHEN_EXECUTED)
    )
    await asyncio.sleep(1.0)
    try:
        yield
    finally:
        receiving.cancel()


class Sender:
    def __init__(self, take: Any) -> None:
        self._take = take

    async def send(self, run: Run) -> None:
        await side_by_side(run, lambda: self._take.kiq(**run.body))


@asynccontextmanager
async def open_sender(place: Place) -> AsyncIterator[Sender]:
    broker, take = made(place)
    await broker.startup()
    try:
        yield Sender(take)
    finally:
        await broker.shutdown()
