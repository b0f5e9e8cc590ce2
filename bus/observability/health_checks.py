"""Health checks of the broker, of a consumer on its queue, of the database and of the claim store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import structlog
from aiormq import Channel

from bus.amqp.publisher import Publisher
from bus.amqp.topology import read_queue_depth
from bus.errors import TemporaryError
from bus.observability import metrics
from bus.observability.health import HealthCheck
from bus.storage.claim_store import ClaimStore

if TYPE_CHECKING:  # the gateway imports this module without FastStream
    from faststream.rabbit.subscriber import RabbitSubscriber

log = structlog.get_logger()


def broker_check(publisher: Publisher) -> HealthCheck:
    async def check() -> str | None:
        return None if publisher.connected else "not connected; the connection is retried until the broker is back"

    return check


def queue_check(
    publisher: Publisher, queue: str, subscriber: "RabbitSubscriber", pause_reason: Callable[[], str | None] = lambda: None
) -> HealthCheck:
    """The queue exists, and this process consumes it: its consumer count alone may be that of other processes.

    The check also measures how many messages wait.
    """

    async def check() -> str | None:
        if not publisher.connected:
            return f"{queue} cannot be checked: the broker is unavailable"
        async with publisher.channel() as channel:
            depth = await read_queue_depth(channel, queue)
        metrics.record_queue_length(queue, depth.ready if depth else None)
        if depth is None:
            return f"{queue} is gone; the consumer returns when the queue does"
        if reason := pause_reason():
            return f"{queue} is not consumed: {reason}"
        if not await is_consuming(subscriber):
            return f"{queue} has no consumer of this process ({depth.consumers} of others); it returns by itself"
        return None

    return check


async def is_consuming(subscriber: "RabbitSubscriber") -> bool:
    """Whether the consumer is registered on the present channel. The broker cancels it there when it deletes the queue."""
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
            return f"does not respond: {error or type(error).__name__}"
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


@asynccontextmanager
async def report_store(claims: ClaimStore) -> AsyncIterator[None]:
    """Check the store beside the block, once, and log why it cannot be used. A process starts without it: its deliveries wait."""
    task = asyncio.create_task(_report_store(claims))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _report_store(claims: ClaimStore) -> None:
    try:
        await claims.check()
    except TemporaryError as error:
        log.error("store.unusable", reason=str(error))
