"""Listen to events: a queue of one's own, bound by a key, gone with the listener."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic import ValidationError

from bus.outbox import Outbox
from contracts import channels
from contracts.event import Event

log = structlog.get_logger()


def job_key(job_id: str) -> str:
    """The binding key of everything that happens to one job."""
    return channels.event_key("*", "*", job_id)


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
