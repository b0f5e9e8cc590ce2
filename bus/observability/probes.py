"""A look at the parts from outside, by whoever is no actor: each call says what is wrong, or None. Nothing is changed."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import aio_pika
import asyncpg
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity

from bus.errors import TemporaryError
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings

PROBE_TIMEOUT_SECONDS = 5.0
BROKER_UNAVAILABLE: tuple[type[BaseException], ...] = (OSError, TimeoutError, AMQPError)
"""How a broker that is not there, or does not let us in, shows."""


@dataclass(frozen=True)
class QueueDepth:
    """A queue: how many messages wait in it, how many consumers it has."""

    ready: int
    consumers: int


async def probe_broker(url: str) -> str | None:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            await (await aio_pika.connect(url)).close()
    except BROKER_UNAVAILABLE as error:
        return describe_error(error)
    return None


async def probe_queues(url: str, names: Iterable[str]) -> dict[str, QueueDepth | None]:
    """Each queue as it is now; None for one that is not there. Raises one of AWAY when the broker is away."""
    found: dict[str, QueueDepth | None] = {}
    async with asyncio.timeout(PROBE_TIMEOUT_SECONDS), await aio_pika.connect(url) as connection:
        for name in names:
            channel = await connection.channel()
            try:
                counted = (await channel.declare_queue(name, passive=True)).declaration_result
                found[name] = QueueDepth(counted.message_count or 0, counted.consumer_count or 0)
                await channel.close()
            except ChannelNotFoundEntity:
                found[name] = None
    return found


async def probe_database(url: str) -> str | None:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            connection = await asyncpg.connect(url)
            try:
                await connection.fetchval("select 1")
            finally:
                await connection.close()
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return describe_error(error)
    return None


async def probe_store(settings: StoreSettings) -> str | None:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS), open_claim_store(settings) as claims:
            await claims.check()
    except (TemporaryError, OSError, TimeoutError, ValueError) as error:
        return describe_error(error)
    return None


async def probe_port(host: str, port: int) -> str | None:
    """Only a connection is tried."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    except (OSError, TimeoutError) as error:
        return describe_error(error)
    return None


def describe_error(error: BaseException) -> str:
    return f"no answer within {PROBE_TIMEOUT_SECONDS:g} s" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
