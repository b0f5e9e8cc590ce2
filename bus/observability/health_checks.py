"""What is looked at: the broker, my consumer on its queue, the database, the store. Each check names what is wrong, or says None."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import asyncpg
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq import Channel

from bus.amqp.publisher import Publisher
from bus.errors import TemporaryError
from bus.observability.health import HealthCheck
from bus.storage.claim_store import ClaimStore

if TYPE_CHECKING:  # the gateway checks its parts, too, and consumes nothing
    from faststream.rabbit.subscriber import RabbitSubscriber


def broker_check(publisher: Publisher) -> HealthCheck:
    async def check() -> str | None:
        return None if publisher.connected else "not connected; it is tried again until the broker is back"

    return check


def queue_check(
    publisher: Publisher, queue: str, subscriber: "RabbitSubscriber", pause_reason: Callable[[], str | None] = lambda: None
) -> HealthCheck:
    """The queue is there, and this very process consumes from it: the count of consumers alone may be that of others."""

    async def check() -> str | None:
        if not publisher.connected:
            return f"{queue} cannot be asked for: the broker is away"
        try:
            async with publisher.channel() as channel:
                counted = (await channel.declare_queue(queue, passive=True)).declaration_result
        except ChannelNotFoundEntity:
            return f"{queue} is gone; the consumer comes back when the queue does"
        if reason := pause_reason():
            return f"{queue} is not read: {reason}"
        if not await is_consuming(subscriber):
            return f"{queue} has no consumer of this process ({counted.consumer_count} of others); it comes back by itself"
        return None

    return check


async def is_consuming(subscriber: "RabbitSubscriber") -> bool:
    """Whether the consumer stands on the channel as it is now. A server that takes a queue away cancels it there."""
    queue, tag = subscriber._queue_obj, subscriber._consumer_tag
    if queue is None or tag is None or queue.channel.is_closed:
        return False
    channel = await queue.channel.get_underlay_channel()
    return isinstance(channel, Channel) and tag in channel.consumers


def database_check(pool: asyncpg.Pool) -> HealthCheck:
    async def check() -> str | None:
        try:
            await pool.fetchval("select 1")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            return f"does not answer: {error or type(error).__name__}"
        return None

    return check


def store_check(claims: ClaimStore) -> HealthCheck:
    async def check() -> str | None:
        try:
            await claims.check()
        except TemporaryError as error:
            return str(error)
        return None

    return check
