"""Listen to events: a queue of one's own, bound by a key, gone with the listener.

Whoever follows many jobs at once has one queue for all of them, and a binding for each.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from pydantic import ValidationError

from bus.amqp.publisher import Publisher
from bus.ids import derived_id
from contracts import broker_names
from contracts.event import Event

log = structlog.get_logger()


def job_binding_key(job_id: str) -> str:
    """The binding key of everything that happens to one job."""
    return broker_names.event_routing_key("*", "*", job_id)


def event_message_id(event: Event) -> str:
    """The id of the message that carried an event, found again from the event itself."""
    percent = [event.progress.progress_percent] if event.progress else []
    return derived_id(event.message_id, event.step, event.kind, *percent)


@asynccontextmanager
async def subscribe_events(publisher: Publisher, *keys: str) -> AsyncIterator["asyncio.Queue[Event]"]:
    """Every event from now on whose key matches, in the order in which the broker had them."""
    heard: asyncio.Queue[Event] = asyncio.Queue()

    async def on_message(message: AbstractIncomingMessage) -> None:
        try:
            heard.put_nowait(Event.model_validate_json(message.body))
        except ValidationError as error:
            log.warning("event.unreadable", key=message.routing_key, error=str(error))

    async with publisher.channel() as channel:
        queue = await channel.declare_queue(f"atelier.listener.{uuid4()}", exclusive=True, auto_delete=True)
        for key in keys:
            await queue.bind(broker_names.EVENTS_EXCHANGE, key)
        await queue.consume(on_message, no_ack=True)
        yield heard


EventQueues = set["asyncio.Queue[Event]"]


class JobSubscription:
    """Hears the events of the jobs that it is asked to follow, and of no other."""

    def __init__(self, queue: AbstractQueue) -> None:
        self._queue = queue
        self._subscribers: dict[str, EventQueues] = {}

    @asynccontextmanager
    async def subscribe(self, job_id: str) -> AsyncIterator["asyncio.Queue[Event]"]:
        """Every event of one job from now on. The binding lasts as long as anybody here follows the job."""
        heard: asyncio.Queue[Event] = asyncio.Queue()
        ears = self._subscribers.setdefault(job_id, set())
        ears.add(heard)
        try:
            await self._queue.bind(broker_names.EVENTS_EXCHANGE, job_binding_key(job_id))
            yield heard
        finally:
            ears.discard(heard)
            if not ears and self._subscribers.get(job_id) is ears:
                del self._subscribers[job_id]
                with suppress(Exception):  # A binding that is gone with its broker need not be taken away.
                    await self._queue.unbind(broker_names.EVENTS_EXCHANGE, job_binding_key(job_id))

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        try:
            event = Event.model_validate_json(message.body)
        except ValidationError as error:
            log.warning("event.unreadable", key=message.routing_key, error=str(error))
            return
        for heard in self._subscribers.get(event.job_id, ()):
            heard.put_nowait(event)


@asynccontextmanager
async def open_job_subscription(publisher: Publisher) -> AsyncIterator[JobSubscription]:
    async with publisher.channel() as channel:
        queue = await channel.declare_queue(f"atelier.listener.{uuid4()}", exclusive=True, auto_delete=True)
        follower = JobSubscription(queue)
        await queue.consume(follower.on_message, no_ack=True)
        yield follower
