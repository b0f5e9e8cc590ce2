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

from bus.ids import derived_id
from bus.outbox import Outbox
from contracts import channels
from contracts.event import Event

log = structlog.get_logger()


def job_key(job_id: str) -> str:
    """The binding key of everything that happens to one job."""
    return channels.event_key("*", "*", job_id)


def event_id(event: Event) -> str:
    """The id of the message that carried an event, found again from the event itself."""
    percent = [event.progress.progress_percent] if event.progress else []
    return derived_id(event.message_id, event.step, event.kind, *percent)


@asynccontextmanager
async def open_events(outbox: Outbox, *keys: str) -> AsyncIterator["asyncio.Queue[Event]"]:
    """Every event from now on whose key matches, in the order in which the broker had them."""
    heard: asyncio.Queue[Event] = asyncio.Queue()

    async def take(message: AbstractIncomingMessage) -> None:
        try:
            heard.put_nowait(Event.model_validate_json(message.body))
        except ValidationError as error:
            log.warning("event.unreadable", key=message.routing_key, error=str(error))

    async with outbox.channel() as channel:
        queue = await channel.declare_queue(f"atelier.listener.{uuid4()}", exclusive=True, auto_delete=True)
        for key in keys:
            await queue.bind(channels.EVENTS, key)
        await queue.consume(take, no_ack=True)
        yield heard


Ears = set["asyncio.Queue[Event]"]


class Follower:
    """Hears the events of the jobs that it is asked to follow, and of no other."""

    def __init__(self, queue: AbstractQueue) -> None:
        self._queue = queue
        self._ears: dict[str, Ears] = {}

    @asynccontextmanager
    async def follow(self, job_id: str) -> AsyncIterator["asyncio.Queue[Event]"]:
        """Every event of one job from now on. The binding lasts as long as anybody here follows the job."""
        heard: asyncio.Queue[Event] = asyncio.Queue()
        ears = self._ears.setdefault(job_id, set())
        ears.add(heard)
        try:
            await self._queue.bind(channels.EVENTS, job_key(job_id))
            yield heard
        finally:
            ears.discard(heard)
            if not ears and self._ears.get(job_id) is ears:
                del self._ears[job_id]
                with suppress(Exception):  # A binding that is gone with its broker need not be taken away.
                    await self._queue.unbind(channels.EVENTS, job_key(job_id))

    async def take(self, message: AbstractIncomingMessage) -> None:
        try:
            event = Event.model_validate_json(message.body)
        except ValidationError as error:
            log.warning("event.unreadable", key=message.routing_key, error=str(error))
            return
        for heard in self._ears.get(event.job_id, ()):
            heard.put_nowait(event)


@asynccontextmanager
async def open_follower(outbox: Outbox) -> AsyncIterator[Follower]:
    async with outbox.channel() as channel:
        queue = await channel.declare_queue(f"atelier.listener.{uuid4()}", exclusive=True, auto_delete=True)
        follower = Follower(queue)
        await queue.consume(follower.take, no_ack=True)
        yield follower
