"""FastStream as its documents show it: a typed handler, acked after it; `publish` with confirms; `request` for replies."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream import AckPolicy
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from pydantic import BaseModel

from benchmarks.peers.workload import CompletionCounter, PeerConfig, Workload, run_concurrently


class PaddedBody(BaseModel):
    run: str
    of: int
    pad: str


def quorum_queue(config: PeerConfig) -> RabbitQueue:
    return RabbitQueue(config.queue, queue_type=QueueType.QUORUM, durable=True)


@asynccontextmanager
async def open_worker(config: PeerConfig) -> AsyncIterator[None]:
    done = CompletionCounter()
    async with RabbitBroker(config.amqp_url, logger=None) as broker:

        @broker.subscriber(quorum_queue(config), channel=Channel(prefetch_count=config.in_flight), ack_policy=AckPolicy.NACK_ON_ERROR)
        async def take(body: PaddedBody) -> PaddedBody:
            done.record(body.run, body.of)
            return body

        await broker.start()
        yield


class PeerSender:
    def __init__(self, broker: RabbitBroker, queue: str) -> None:
        self._broker, self._queue = broker, queue

    async def send(self, run: Workload) -> None:
        await run_concurrently(run, lambda: self._broker.publish(run.body, self._queue, persist=True))

    async def ask(self, run: Workload) -> None:
        async def once() -> None:
            reply = await self._broker.request(run.body, self._queue, persist=True, timeout=600)
            await reply.decode()

        await run_concurrently(run, once)


@asynccontextmanager
async def open_sender(config: PeerConfig) -> AsyncIterator[PeerSender]:
    async with RabbitBroker(config.amqp_url, logger=None) as broker:
        yield PeerSender(broker, config.queue)
