"""Dramatiq: its own worker threads, acked after work, `confirm_delivery`. It has no replies over RabbitMQ."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers.workload import CompletionCounter, PeerConfig, Workload

MAX_THREADS = 16
"""More threads are slower here."""


def create_broker(config: PeerConfig, broker_class: type[RabbitmqBroker]) -> tuple[RabbitmqBroker, Any]:
    done = CompletionCounter()
    broker = broker_class(url=config.amqp_url, confirm_delivery=True)
    dramatiq.set_broker(broker)

    @dramatiq.actor(queue_name=config.queue, broker=broker, max_retries=0)
    def take(run: str, of: int, pad: str) -> None:
        done.record(run, of)

    return broker, take


@asynccontextmanager
async def open_worker(config: PeerConfig, broker_class: type[RabbitmqBroker] = RabbitmqBroker) -> AsyncIterator[None]:
    broker, _ = create_broker(config, broker_class)
    worker = dramatiq.Worker(broker, worker_threads=min(MAX_THREADS, config.in_flight))
    worker.start()
    try:
        yield
    finally:
        worker.stop()


class PeerSender:
    def __init__(self, take: Any, threads: int) -> None:
        self._take, self._threads = take, threads

    async def send(self, run: Workload) -> None:
        await asyncio.to_thread(self._send, run)

    def _send(self, run: Workload) -> None:
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda _: self._take.send(**run.body), range(run.count)))


@asynccontextmanager
async def open_sender(config: PeerConfig, broker_class: type[RabbitmqBroker] = RabbitmqBroker) -> AsyncIterator[PeerSender]:
    broker, take = create_broker(config, broker_class)
    try:
        yield PeerSender(take, min(MAX_THREADS, config.in_flight))
    finally:
        broker.close()
