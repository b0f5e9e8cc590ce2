"""Taskiq over taskiq-aio-pika: acked when executed, quorum queue. It has no replies over RabbitMQ."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

from benchmarks.peers.workload import CompletionCounter, PeerConfig, Workload, run_concurrently


def create_broker(config: PeerConfig) -> tuple[AioPikaBroker, Any]:
    done = CompletionCounter()
    broker = AioPikaBroker(config.amqp_url, qos=config.in_flight, task_queues=[Queue(name=config.queue, type=QueueType.QUORUM)])

    @broker.task(queue_name=config.queue)
    async def take(run: str, of: int, pad: str) -> None:
        done.record(run, of)

    return broker, take


@asynccontextmanager
async def open_worker(config: PeerConfig) -> AsyncIterator[None]:
    broker, _ = create_broker(config)
    broker.is_worker_process = True
    receiving = asyncio.create_task(
        run_receiver_task(broker, run_startup=True, max_async_tasks=config.in_flight, ack_time=AcknowledgeType.WHEN_EXECUTED)
    )
    await asyncio.sleep(1.0)
    try:
        yield
    finally:
        receiving.cancel()


class PeerSender:
    def __init__(self, take: Any) -> None:
        self._take = take

    async def send(self, run: Workload) -> None:
        await run_concurrently(run, lambda: self._take.kiq(**run.body))


@asynccontextmanager
async def open_sender(config: PeerConfig) -> AsyncIterator[PeerSender]:
    broker, take = create_broker(config)
    await broker.startup()
    try:
        yield PeerSender(take)
    finally:
        await broker.shutdown()
