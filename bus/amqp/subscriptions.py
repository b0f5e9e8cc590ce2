"""Subscriptions to events, each through an exclusive queue that is deleted with its subscriber.

`subscribe_events` binds one queue by keys; `JobSubscription` follows any number of jobs through one queue, with a binding per job.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from pydantic import ValidationError

from bus.amqp import signing
from bus.amqp.exclusive_queue import consume_exclusive, declare_exclusive_queue
from bus.amqp.publisher import Publisher
from contracts import broker_names
from contracts.broker_names import job_binding_key
from contracts.event import Event

log = structlog.get_logger()


def decode_event(message: AbstractIncomingMessage) -> Event | None:
    """The event of a message; an invalid or unsigned one is logged and skipped."""
    if signing.is_refused(message, "event"):
        return None
    try:
        return Event.model_validate_json(message.body)
    except ValidationError as error:
        log.warning("event.invalid", key=message.routing_key, error=str(error))
        return None


@asynccontextmanager
async def subscribe_events(publisher: Publisher, *keys: str) -> AsyncIterator["asyncio.Queue[Event]"]:
    """Every event from now on whose routing key matches, in the broker's order."""
    events: asyncio.Queue[Event] = asyncio.Queue()

    async def on_message(message: AbstractIncomingMessage) -> None:
        if event := decode_event(message):
            events.put_nowait(event)

    async with publisher.channel() as channel:
        queue = await declare_exclusive_queue(channel, "atelier.listener")
        for key in keys:
            await queue.bind(broker_names.EVENTS_EXCHANGE, key)
        await consume_exclusive(queue, on_message)
        yield events


EventQueues = set["asyncio.Queue[Event]"]


class JobSubscription:
    """Receives the events of those jobs that have a subscriber in this process.

    A subscriber that is cancelled leaves its calls to the broker to their end: one that is cut off closes the channel of all.
    """

    def __init__(self, queue: AbstractQueue) -> None:
        self._queue = queue
        self._subscribers: dict[str, EventQueues] = {}

    @asynccontextmanager
    async def subscribe(self, job_id: str) -> AsyncIterator["asyncio.Queue[Event]"]:
        """Every event of one job from now on. The binding exists as long as the job has a subscriber."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        subscribers = self._subscribers.setdefault(job_id, set())
        subscribers.add(events)
        try:
            await asyncio.shield(self._queue.bind(broker_names.EVENTS_EXCHANGE, job_binding_key(job_id)))
            yield events
        finally:
            subscribers.discard(events)
            if not subscribers and self._subscribers.get(job_id) is subscribers:
                del self._subscribers[job_id]
                with suppress(Exception):  # A binding that was lost with its broker needs no removal.
                    await asyncio.shield(self._queue.unbind(broker_names.EVENTS_EXCHANGE, job_binding_key(job_id)))

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        if event := decode_event(message):
            for events in self._subscribers.get(event.job_id, ()):
                events.put_nowait(event)


@asynccontextmanager
async def open_job_subscription(publisher: Publisher) -> AsyncIterator[JobSubscription]:
    async with publisher.channel() as channel:
        queue = await declare_exclusive_queue(channel, "atelier.listener")
        subscription = JobSubscription(queue)
        await consume_exclusive(queue, subscription.on_message)
        yield subscription
