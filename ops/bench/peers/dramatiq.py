"""Dramatiq: its own worker threads, acked after work, `confirm_delivery`. It has no replies over RabbitMQ."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from ops.bench.peers.run import Done, Place, Run

THREADS = 16
"""At most; more of them are slower here."""


def made(place: Place) -> tuple[RabbitmqBroker, Any]:
    done = Done()
    broker = RabbitmqBroker(url=place.amqp_url, confirm_delivery=True)
    dramatiq.set_broker(broker)

    @dramatiq.actor(queue_name=place.queue, broker=broker, max_retries=0)
    def take(run: str, of: int, pad: str) -> None:
        done.one(run, of)

    return broker, take


@asynccontextmanager
async def open_worker(place: Place) -> AsyncIterator[None]:
    broker, _ = made(place)
    worker = dramatiq.Worker(broker, worker_threads=min(THREADS, place.in_flight))
    worker.start()
    try:
        yield
    finally:
        worker.stop()


class Sender:
    def __init__(self, take: Any, threads: int) -> None:
        self._take, self._threads = take, threads

    async def send(self, run: Run) -> None:
        await asyncio.to_thread(self._send, run)

    def _send(self, run: Run) -> None:
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda _: self._take.send(**run.body), range(run.count)))


@asynccontextmanager
async def open_sender(place: Place) -> AsyncIterator[Sender]:
    broker, take = made(place)
    try:
        yield Sender(take, min(THREADS, place.in_flight))
    finally:
        broker.close()
