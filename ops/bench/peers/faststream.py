"""FastStream as its documents show it: a typed handler, acked after it; `publish` with confirms; `request` for replies."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream import AckPolicy
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from pydantic import BaseModel

from ops.bench.peers.run import Done, Place, Run, side_by_side


class Padded(BaseModel):
    run: str
    of: int
    pad: str


def queue(place: Place) -> RabbitQueue:
    return RabbitQueue(place.queue, queue_type=QueueType.QUORUM, durable=True)


@asynccontextmanager
async def open_worker(place: Place) -> AsyncIterator[None]:
    done = Done()
    async with RabbitBroker(place.amqp_url, logger=None) as broker:

        @broker.subscriber(queue(place), channel=Channel(prefetch_count=place.in_flight), ack_policy=AckPolicy.NACK_ON_ERROR)
        async def take(body: Padded) -> Padded:
            done.one(body.run, body.of)
            return body

        await broker.start()
        yield


class Sender:
    def __init__(self, broker: RabbitBroker, queue: str) -> None:
        self._broker, self._queue = broker, queue

    async def send(self, run: Run) -> None:
        await side_by_side(run, lambda: self._broker.publish(run.body, self._queue, persist=True))

    async def ask(self, run: Run) -> None:
        async def once() -> None:
            answer = await self._broker.request(run.body, self._queue, persist=True, timeout=600)
            await answer.decode()

        await side_by_side(run, once)


@asynccontextmanager
async def open_sender(place: Place) -> AsyncIterator[Sender]:
    async with RabbitBroker(place.amqp_url, logger=None) as broker:
        yield Sender(broker, place.queue)
