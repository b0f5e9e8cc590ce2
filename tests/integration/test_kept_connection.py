"""The connection that the inbox keeps between statements, on a real Postgres: nobody waits for it for long, and its loss is no error."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from bus.persistence.kept_connection import KeptConnection
from bus.persistence.pool import open_pool
from bus.settings import BusSettings

PROCESS = "select pg_backend_pid() as pid"


@pytest.fixture(params=[1, 2])
async def pool(bus_settings: BusSettings, request: pytest.FixtureRequest) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(BusSettings.model_validate(bus_settings.model_dump() | {"database_pool_size": request.param})) as pool:
        assert pool is not None
        yield pool


@pytest.fixture
async def kept(pool: asyncpg.Pool) -> AsyncIterator[KeptConnection]:
    kept = KeptConnection(pool)
    yield kept
    await kept.close()


async def run(kept: KeptConnection) -> int:
    (row,) = await kept.fetch(PROCESS)
    return int(row["pid"])


async def test_only_connection_is_never_kept(pool: asyncpg.Pool, kept: KeptConnection) -> None:
    await run(kept)
    assert (pool.get_idle_size() == 1) == (pool.get_max_size() == 1)


async def test_caller_that_waits_for_a_connection_gets_it_after_the_statement(pool: asyncpg.Pool, kept: KeptConnection) -> None:
    """Statement follows statement meanwhile."""

    async def run_for_ever() -> None:
        while True:
            await run(kept)

    running = asyncio.create_task(run_for_ever())
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        connections = [await pool.acquire() for _ in range(pool.get_max_size())]
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})
    for connection in connections:
        await pool.release(connection)


async def test_caller_that_waits_for_an_unused_connection_gets_it_soon(pool: asyncpg.Pool, kept: KeptConnection) -> None:
    await run(kept)
    async with asyncio.timeout(5):
        connections = [await pool.acquire() for _ in range(pool.get_max_size())]
    assert len(connections) == pool.get_size() == pool.get_max_size()
    assert pool.get_idle_size() == 0
    for connection in connections:
        await pool.release(connection)


async def test_statements_at_the_same_time_have_a_connection_each(pool: asyncpg.Pool, kept: KeptConnection) -> None:
    async with asyncio.timeout(5):
        processes = await asyncio.gather(*(run(kept) for _ in range(20)))
    assert len(set(processes)) == pool.get_max_size()
    await kept.close()
    assert pool.get_idle_size() == pool.get_size()


async def test_connection_that_was_closed_meanwhile_is_replaced(pool: asyncpg.Pool, kept: KeptConnection, database_url: str) -> None:
    """Silently: it was not in use."""
    lost = await run(kept)
    other = await asyncpg.connect(database_url)
    await other.execute("select pg_terminate_backend($1)", lost)
    while await other.fetchval("select exists (select from pg_stat_activity where pid = $1)", lost):
        await asyncio.sleep(0.005)
    await other.close()
    await asyncio.sleep(0.05)
    assert await run(kept) != lost


async def test_connection_that_expired_with_its_pool_is_replaced(
    pool: asyncpg.Pool, kept: KeptConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a time-out on any connection, as when the server of all became a replica."""
    monkeypatch.setattr("bus.persistence.kept_connection.KEPT_SECONDS", 60)
    expired = await run(kept)
    async with pool.acquire() as connection:
        with pytest.raises(TimeoutError):
            await connection.fetch("select pg_sleep(5)", timeout=0.05)
    assert await run(kept) != expired
    await kept.close()
    assert pool.get_idle_size() == pool.get_size()


@pytest.mark.parametrize("pool", [2], indirect=True)
async def test_connection_that_was_aborted_is_returned(pool: asyncpg.Pool, kept: KeptConnection) -> None:
    """The client library closes it without cleaning it up when the server sends what it does not understand."""
    await run(kept)
    kept._connection._con._protocol.abort()
    await run(kept)
    async with asyncio.timeout(5):
        await kept.close()
        connections = [await pool.acquire() for _ in range(pool.get_max_size())]
    assert len(connections) == pool.get_size() == pool.get_max_size()
    for connection in connections:
        await pool.release(connection)


async def test_failed_statement_returns_the_connection(pool: asyncpg.Pool, kept: KeptConnection) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        await kept.fetch("select 1 / 0")
    assert pool.get_idle_size() == pool.get_size()
    assert await run(kept)
