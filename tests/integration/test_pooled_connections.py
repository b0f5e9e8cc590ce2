"""The database pool when all its connections stop responding together, as behind a failed router."""

import asyncio
from urllib.parse import urlsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from bus.persistence import pool as persistence_pool
from bus.persistence.pool import SCHEMA_LOCK_ID, apply_schemas, open_pool
from bus.settings import BusSettings
from tests.support.tcp_proxy import open_proxy


async def test_one_timed_out_connection_expires_the_pool(
    bus_settings: BusSettings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first statement waits for its time-out; otherwise each connection would cost one."""
    monkeypatch.setattr(persistence_pool, "STATEMENT_TIMEOUT_SECONDS", 0.5)
    parts = urlsplit(database_url)
    async with open_proxy(parts.port or 0) as proxy:
        url = database_url.replace(parts.netloc.rpartition("@")[2], f"127.0.0.1:{proxy.port}")
        async with open_pool(BusSettings.model_validate(bus_settings.model_dump() | {"database_url": url})) as pool:
            assert pool
            await asyncio.gather(*(pool.execute("select pg_sleep(0.1)") for _ in range(8)))
            proxy.half_open()
            with pytest.raises(TimeoutError):
                await pool.fetchval("select 1")
            async with asyncio.timeout(5):
                assert await asyncio.gather(*(pool.fetchval("select 1") for _ in range(8))) == [1] * 8


async def test_start_waits_longer_than_a_statement_for_a_process_that_applies_the_schemas(
    bus_settings: BusSettings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so once. The other one does not count as a server that does not respond."""
    monkeypatch.setattr(persistence_pool, "STATEMENT_TIMEOUT_SECONDS", 0.3)
    other = await asyncpg.connect(database_url)
    try:
        await other.execute("select pg_advisory_lock($1)", SCHEMA_LOCK_ID)
        async with open_pool(bus_settings) as pool:
            assert pool
            with capture_logs() as logs:
                applying = asyncio.create_task(apply_schemas(pool, ["select"]))
                await asyncio.wait({applying}, timeout=0.8)
                assert not applying.done()
                await other.execute("select pg_advisory_unlock($1)", SCHEMA_LOCK_ID)
                await asyncio.wait_for(applying, 5)
    finally:
        await other.close()
    assert [log["event"] for log in logs] == ["database.schemas_waiting"]
