"""A look at the parts from outside, by whoever is no actor: each call says what is wrong, or None. Nothing is changed."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import aio_pika
import asyncpg
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity

from bus.errors import TemporaryError
from bus.store_settings import StoreSettings
from bus.stores import open_claims

PATIENCE_SECONDS = 5.0
AWAY: tuple[type[BaseException], ...] = (OSError, TimeoutError, AMQPError)
"""How a broker that is not there, or does not let us in, shows."""


@dataclass(frozen=True)
class Read:
    """A queue: how many messages wait in it, how many consumers it has."""

    messages: int
    consumers: int


async def broker_trouble(url: str) -> str | None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await (await aio_pika.connect(url)).close()
    except AWAY as error:
        return reason(error)
    return None


async def queues_of(url: str, names: Iterable[str]) -> dict[str, Read | None]:
    """Each queue as it is now; None for one that is not there. Raises one of AWAY when the broker is away."""
    found: dict[str, Read | None] = {}
    async with asyncio.timeout(PATIENCE_SECONDS), await aio_pika.connect(url) as connection:
        for name in names:
            channel = await connection.channel()
            try:
                counted = (await channel.declare_queue(name, passive=True)).declaration_result
                found[name] = Read(counted.message_count or 0, counted.consumer_count or 0)
                await channel.close()
            except ChannelNotFoundEntity:
                found[name] = None
    return found


async def database_trouble(url: str) -> str | None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            connection = await asyncpg.connect(url)
            try:
                await connection.fetchval("select 1")
            finally:
                await connection.close()
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return reason(error)
    return None


async def store_trouble(settings: StoreSettings) -> str | None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), open_claims(settings) as claims:
            await claims.check()
    except (TemporaryError, OSError, TimeoutError, ValueError) as error:
        return reason(error)
    return None


async def port_trouble(host: str, port: int) -> str | None:
    """Only a connection is tried."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    except (OSError, TimeoutError) as error:
        return reason(error)
    return None


def reason(error: BaseException) -> str:
    return f"no answer within {PATIENCE_SECONDS:g} s" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
