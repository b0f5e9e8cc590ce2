"""Ended jobs are deleted after LEDGER_RETENTION_DAYS, with their events and claims. Real Postgres."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from actors import ledger
from actors.settings import LedgerSettings
from bus.actor import Resources
from bus.persistence.pool import open_pool
from bus.persistence.server_check import find_database
from bus.persistence.session_locks import SessionLocks, open_session_locks
from bus.settings import BusSettings
from tests.support.broker_client import wait_until

OLD, NEW = timedelta(days=91), timedelta(days=1)
TABLES = ("jobs", "job_events", "job_claims", "generation_claims")


@pytest.fixture
async def pool(bus_settings: BusSettings) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(bus_settings) as pool:
        assert pool
        await pool.execute(ledger.SQL["schema"])
        await pool.execute("truncate " + ", ".join(f"atelier.{table}" for table in TABLES))
        yield pool


@pytest.fixture
async def locks(bus_settings: BusSettings) -> AsyncIterator[SessionLocks]:
    async with open_session_locks(bus_settings, await find_database(bus_settings)) as locks:
        assert locks
        yield locks


async def insert_job(pool: asyncpg.Pool, job_id: str, state: str, age: timedelta) -> None:
    """A job with an event, a claim and a generation."""
    at = datetime.now(UTC) - age
    ended_at = at if state in ("completed", "failed", "cancelled") else None
    insert = "insert into atelier.jobs (job_id, state, created_at, updated_at, ended_at) values ($1, $2, $3, $3, $4)"
    await pool.execute(insert, job_id, state, at, ended_at)
    columns = "(job_id, at, step, kind, message_id, percent, body)"
    await pool.execute(f"insert into atelier.job_events {columns} values ($1, $2, 'job', 'accepted', 'm', 0, '{{}}')", job_id, at)
    await pool.execute("insert into atelier.job_claims (job_id, kind, sha256, claimed_at) values ($1, 'ad', 'x', $2)", job_id, at)


async def remaining(pool: asyncpg.Pool, table: str) -> list[str]:
    return [row["job_id"] for row in await pool.fetch(f"select job_id from atelier.{table} order by job_id")]


async def test_old_ended_jobs_are_purged_and_running_ones_kept(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches: three jobs are deleted with a batch of two."""
    monkeypatch.setattr(ledger, "PURGE_BATCH_SIZE", 2)
    for job_id, state in (("a", "completed"), ("b", "failed"), ("c", "cancelled"), ("running", "running"), ("waiting", "accepted")):
        await insert_job(pool, job_id, state, OLD)
    await insert_job(pool, "young", "completed", NEW)
    await pool.execute("insert into atelier.generation_claims values ('', 1, 'shop', $1), ('', 2, 'shop', now())", datetime.now(UTC) - OLD)
    assert await ledger.purge_jobs(pool, 90) == 3
    assert {tuple(await remaining(pool, table)) for table in TABLES[:2]} == {("running", "waiting", "young")}
    assert await remaining(pool, "job_claims") == ["running", "waiting", "young"]
    assert await pool.fetchval("select array_agg(generation_id) from atelier.generation_claims") == [2]
    assert await ledger.purge_jobs(pool, 90) == 0


async def test_open_ledger_purges_at_intervals_and_survives_a_database_error(
    pool: asyncpg.Pool, locks: SessionLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_RETENTION_DAYS", "2")
    monkeypatch.setattr(ledger, "PURGE_INTERVAL_SECONDS", 0.05)
    await pool.execute("alter table atelier.jobs rename to jobs_elsewhere")
    async with ledger.open_ledger(Resources(None, pool, locks=locks)):  # type: ignore[arg-type]
        await asyncio.sleep(0.3)
        await pool.execute("alter table atelier.jobs_elsewhere rename to jobs")
        await insert_job(pool, "old", "completed", timedelta(days=3))

        async def is_purged() -> bool:
            return await remaining(pool, "jobs") == []

        await wait_until(is_purged)
    assert await pool.fetchval("select count(*) from atelier.jobs") == 0


async def test_retention_of_zero_keeps_everything(pool: asyncpg.Pool, locks: SessionLocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEDGER_RETENTION_DAYS", "0")
    monkeypatch.setattr(ledger, "PURGE_INTERVAL_SECONDS", 0.01)
    await insert_job(pool, "old", "completed", timedelta(days=9999))
    async with ledger.open_ledger(Resources(None, pool, locks=locks)):  # type: ignore[arg-type]
        await asyncio.sleep(0.2)
    assert await remaining(pool, "jobs") == ["old"]


def test_retention_is_ninety_days_by_default() -> None:
    assert LedgerSettings().retention_days == 90
