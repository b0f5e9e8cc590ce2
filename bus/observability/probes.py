"""Probes of the dependencies for the command line: each returns what is wrong, or None. They change nothing."""

import asyncio
from collections.abc import Iterable

import aio_pika
from aio_pika.exceptions import AMQPError

from bus.amqp.topology import QueueDepth, read_queue_depth
from bus.errors import PermanentError, TemporaryError
from bus.masking import mask_error
from bus.persistence.server_check import OTHER_DATABASE, examine_server, require_own_sessions
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings

PROBE_TIMEOUT_SECONDS = 5.0
BROKER_UNAVAILABLE: tuple[type[BaseException], ...] = (OSError, TimeoutError, AMQPError)
"""The errors of a broker that cannot be reached, or rejects the credentials."""


async def probe_broker(url: str) -> str | None:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            await (await aio_pika.connect(url)).close()
    except BROKER_UNAVAILABLE as error:
        return describe_error(error)
    return None


async def probe_queues(url: str, names: Iterable[str]) -> dict[str, QueueDepth | None]:
    """The depth of each queue; None for one that does not exist. Raises one of BROKER_UNAVAILABLE."""
    depths: dict[str, QueueDepth | None] = {}
    async with asyncio.timeout(PROBE_TIMEOUT_SECONDS), await aio_pika.connect(url) as connection:
        for name in names:
            channel = await connection.channel()
            depths[name] = await read_queue_depth(channel, name)
            await channel.close()
    return depths


async def probe_database(url: str, direct_url: str | None) -> str | None:
    """As a worker examines both URLs at its start. The text names the setting and the host."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            server = await examine_server("DATABASE_URL", url)
            direct = await examine_server("DATABASE_DIRECT_URL", direct_url) if direct_url else server
            require_own_sessions(direct)
    except (OSError, TimeoutError, PermanentError) as error:
        return describe_error(error)
    return None if direct.identity == server.identity else OTHER_DATABASE


async def probe_store(settings: StoreSettings) -> str | None:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS), open_claim_store(settings) as claims:
            await claims.check()
    except (TemporaryError, OSError, TimeoutError, ValueError) as error:
        return describe_error(error)
    return None


async def probe_port(host: str, port: int) -> str | None:
    """Only connects."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    except (OSError, TimeoutError) as error:
        return describe_error(error)
    return None


def describe_error(error: BaseException) -> str:
    return f"no response within {PROBE_TIMEOUT_SECONDS:g} s" if isinstance(error, TimeoutError) else mask_error(error)
