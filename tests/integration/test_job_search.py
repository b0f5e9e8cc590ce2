"""Jobs by words: the index finds what a plain reading of all jobs finds, in every script, also while jobs are written."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from actors import ledger
from bus.persistence.pool import apply_schemas, open_pool
from bus.persistence.session_locks import SessionLocks, connect_session
from bus.settings import BusSettings
from contracts.job import Job, ListJobs
from tests.support.actor_context import make_context
from tests.support.broker_client import wait_until
from tests.support.own_database import own_database
from tests.support.pgbouncer import open_pgbouncer

START = datetime(2026, 1, 1, tzinfo=UTC)
ALPHABET = "abA1 \n\x01éÉ하늘바\u212aİΣσ🦊"
"""With letters whose lower case is shorter, longer, of another script, or depends on their place."""
ASCII, KELVIN = "abkA1 ", "\u212a"
EDGES = {"xkk": KELVIN * 2, "abcde": "bcd", "a하늘": "하늘", "xΣ": "Σ"}
"""Words, and what is searched: at the second character of a pair; the Kelvin sign, whose lower case is in ASCII."""
STATES, TENANTS = ("accepted", "running", "completed"), (None, "shop", "가게")
ALL_JOBS = "select * from atelier.jobs where $1::text is null or position(lower($1) in lower(words)) > 0 or position($1 in job_id) > 0"
INSERT = """
insert into atelier.jobs (job_id, state, tenant, created_at, updated_at, words, result) values ($1, $2, $3, $4, $4, $5, $6)
on conflict (job_id) do update set words = coalesce(jobs.words, excluded.words), state = excluded.state
"""
INDEX = "select 'atelier.job_search_triples'::regclass::oid"
MANY = 10_001
"""More than the start of a process indexes."""


@pytest.fixture(params=["", "template template0 locale_provider builtin builtin_locale 'PG_UNICODE_FAST' locale 'C'"], ids=["C", "Unicode"])
async def url(database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Of a database with nothing else in it, with and without the lower case of other scripts."""
    async with own_database(database_url, options=request.param) as (url, _, _):
        yield url


@pytest.fixture
async def pool(url: str) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(BusSettings.model_validate({"amqp_url": "amqp://none", "database_url": url})) as pool:
        await apply_schemas(pool, [ledger.SQL["schema"]])
        yield pool


@asynccontextmanager
async def session_locks(url: str) -> AsyncIterator[SessionLocks]:
    """Those of one process."""
    locks = SessionLocks(lambda: connect_session(url))
    try:
        yield locks
    finally:
        await locks.close()


def random_text(source: random.Random, length: int) -> str:
    alphabet = source.choice((ASCII, ALPHABET))
    return "".join(source.choice(alphabet) for _ in range(length))


async def write_jobs(source: random.Random, pool: asyncpg.Pool, count: int) -> None:
    """New ones with and without words; some get words or another state later, some are deleted."""
    known = [row["job_id"] for row in await pool.fetch("select job_id from atelier.jobs")]
    rows = []
    for number in range(count):
        job_id = source.choice(known) if known and source.random() < 0.3 else f"{random_text(source, 6)}{len(known)}-{number}"
        words = random_text(source, source.randrange(14)) if source.random() < 0.7 else None
        result = source.choice((None, {"files": []}, {"text": ""}))
        created = START + timedelta(seconds=source.randrange(10**6), microseconds=number)
        rows.append((job_id, source.choice(STATES), source.choice(TENANTS), created, words, result))
    await pool.executemany(INSERT, rows)
    await pool.execute("delete from atelier.jobs where job_id = any($1::text[])", source.sample(known, len(known) // 10))


async def list_jobs(pool: asyncpg.Pool, **query: Any) -> list[Job]:
    return (await ledger.list_jobs(ListJobs(**query), make_context(), database=pool)).jobs


def random_query(source: random.Random, rows: list[asyncpg.Record]) -> dict[str, Any]:
    text = source.choice([row["words"] or row["job_id"] for row in rows])
    begin, length = source.randrange(len(text) + 1), source.randrange(1, 6)
    values = {
        "words": source.choice((text[begin : begin + length], text.upper()[begin : begin + length], random_text(source, length))) or "a",
        "state": source.choice(STATES),
        "tenant": source.choice(TENANTS),
        "before": START + timedelta(seconds=source.randrange(10**6)),
        "pictures": True,
    }
    optional = source.sample(["state", "tenant", "before", "pictures"], source.choice((0, 0, 1, 2)))
    return {name: values[name] for name in (*(["words"] if source.random() < 0.8 else []), *optional)}


def is_selected(row: asyncpg.Record, query: dict[str, Any]) -> bool:
    return (
        all(query.get(name) in (None, row[name]) for name in ("state", "tenant"))
        and ("before" not in query or row["created_at"] < query["before"])
        and ("pictures" not in query or bool(row["result"] and row["result"].keys() & {"files", "images"}))
    )


@pytest.mark.parametrize("newest", [ledger.MOST_NEWEST, 1], ids=["the newest jobs, which are all", "the index, beyond the newest job"])
async def test_lists_are_those_of_a_plain_reading(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch, newest: int) -> None:
    monkeypatch.setattr(ledger, "MOST_NEWEST", newest)
    source = random.Random(0)
    for _ in range(3):
        await write_jobs(source, pool, 60)
        assert await pool.fetchval(ledger.SQL["search_is_indexed"])
        everything = await pool.fetch(ALL_JOBS, None)
        for _ in range(40):
            query, limit = random_query(source, everything), source.choice((2, 500))
            rows = await pool.fetch(ALL_JOBS, query.get("words"))
            expected = sorted((row for row in rows if is_selected(row, query)), key=lambda row: row["created_at"], reverse=True)
            jobs = await list_jobs(pool, limit=limit, **query)
            assert [job.job_id for job in jobs] == [row["job_id"] for row in expected[:limit]], query
    for words, searched in EDGES.items():
        await pool.execute(INSERT, words, "accepted", None, START, words, None)
        expected_ids = {row["job_id"] for row in await pool.fetch(ALL_JOBS, searched)}
        assert {job.job_id for job in await list_jobs(pool, words=searched, limit=500)} == expected_ids, searched
    assert await pool.fetchval("select count(*) from atelier.job_search") == await pool.fetchval("select count(*) from atelier.jobs")


async def fill(pool: asyncpg.Pool, count: int) -> None:
    await pool.execute(
        "insert into atelier.jobs (job_id, state, created_at, updated_at, words) "
        "select 'filled-' || n, 'completed', $2::timestamptz - n * interval '1 second', now(), "
        "case when n % 5 > 0 then '하늘 harbour ' || n end "
        "from generate_series(1, $1::integer) n",
        count,
        START,
    )


@pytest.mark.parametrize("url", [""], ids=["C"], indirect=True)
async def test_many_jobs_of_an_earlier_release_become_searchable(pool: asyncpg.Pool, url: str) -> None:
    """Before and after their index is created, which the start of a process does not wait for, by two ledgers that start at once.

    An index that is broken is created again.
    """
    for name in ("added", "added_together", "reworded", "removed", "truncated"):
        await pool.execute(f"drop trigger jobs_{name} on atelier.jobs")
    await pool.execute("drop table atelier.job_search; drop index atelier.jobs_tenant")
    await fill(pool, MANY)
    for _ in range(2):
        await apply_schemas(pool, [ledger.SQL["schema"]])
    for name in ("newer", "new"):
        await pool.execute(INSERT, name, "accepted", None, START + timedelta(seconds=len(name)), "Harbour 9998, lantern", None)
    found, indexed = ["newer", "new", "filled-9998"], partial(pool.fetchval, ledger.SQL["search_is_indexed"])
    assert (await indexed(), [job.job_id for job in await list_jobs(pool, words="harbour 9998")]) == (False, found)
    with pytest.raises(asyncpg.UniqueViolationError):
        await pool.execute("create unique index concurrently job_search_triples on atelier.job_search ((1))")
    assert not await indexed()
    async with session_locks(url) as locks, session_locks(url) as others:
        await asyncio.gather(ledger.fill_search(pool, locks), ledger.fill_search(pool, others))
    assert (await indexed(), [job.job_id for job in await list_jobs(pool, words="harbour 9998")]) == (True, found)
    assert [job.job_id for job in await list_jobs(pool, words="filled-10000")] == ["filled-10000"]
    await pool.execute("truncate atelier.jobs")
    assert await pool.fetchval("select count(*) from atelier.job_search") == 0


@pytest.mark.parametrize("url", [""], ids=["C"], indirect=True)
async def test_index_of_an_earlier_release_is_replaced(pool: asyncpg.Pool, url: str) -> None:
    """That of pairs of characters, and the trigger for each row, beside new jobs: each is searchable, before and afterwards."""
    await pool.execute("drop index atelier.job_search_triples; create index job_search_pairs on atelier.job_search (words)")
    await pool.execute("drop trigger jobs_added_together on atelier.jobs; alter table atelier.jobs enable trigger jobs_added")
    await fill(pool, 1200)
    await apply_schemas(pool, [ledger.SQL["schema"]])
    await pool.execute(INSERT, "new", "accepted", None, START + timedelta(seconds=1), "harbour 1199", None)
    before = [job.job_id for job in await list_jobs(pool, words="harbour 1199")]
    assert not await pool.fetchval(ledger.SQL["search_is_indexed"])
    async with session_locks(url) as locks:
        await asyncio.wait_for(ledger.index_search(pool, locks), 10)
        assert await pool.fetchval(ledger.SQL["search_is_indexed"])
        assert not await pool.fetchval(ledger.SQL["has_former_search_index"])
        await pool.execute("create index job_search_pairs on atelier.job_search (words)")  # by a process of that release
        await asyncio.wait_for(ledger.index_search(pool, locks), 10)
    assert not await pool.fetchval(ledger.SQL["has_former_search_index"])
    assert before == [job.job_id for job in await list_jobs(pool, words="harbour 1199")] == ["new", "filled-1199"]
    assert await pool.fetchval("select count(*) from atelier.job_search") == 1201


@pytest.mark.parametrize("url", [""], ids=["C"], indirect=True)
async def test_ledger_that_does_not_create_the_index_waits_and_finds_it_created(
    pool: asyncpg.Pool, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the index alone that another one creates, which is there and not valid meanwhile, and reports nothing."""
    await pool.execute("drop index atelier.job_search_triples; insert into atelier.job_search values ('a'), ('b')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await pool.execute("create unique index concurrently job_search_triples on atelier.job_search ((1))")
    async with session_locks(url) as locks, session_locks(url) as others:
        take, attempts = locks.fetchval, 0

        async def count_attempts(statement: str, *arguments: Any) -> Any:
            nonlocal attempts
            attempts += statement == ledger.SQL["lock_search"]
            return await take(statement, *arguments)

        async def has_waited() -> bool:
            return attempts > 1

        monkeypatch.setattr(locks, "fetchval", count_attempts)
        async with others.hold(ledger.SQL["lock_search"], ledger.SQL["unlock_search"], ledger.SEARCH_LOCK_ID):
            with capture_logs() as logs:
                indexing = asyncio.create_task(ledger.index_search(pool, locks))
                await wait_until(has_waited, seconds=5)
                await pool.execute("drop index atelier.job_search_triples")
                await pool.execute(ledger.SQL["create_search_index"])
                created = await pool.fetchval(INDEX)
        await asyncio.wait_for(indexing, 5)
    assert (await pool.fetchval(INDEX), logs) == (created, [])


@pytest.mark.parametrize("url", [""], ids=["C"], indirect=True)
async def test_two_ledgers_create_the_index_behind_pgbouncer(pool: asyncpg.Pool, url: str) -> None:
    """In transaction mode: the lock is on a direct connection, the index is created through the pooler."""
    await fill(pool, 3000)
    await pool.execute("drop index atelier.job_search_triples")
    async with (
        open_pgbouncer(url) as pooler,
        open_pool(BusSettings.model_validate({"amqp_url": "amqp://none", "database_url": pooler})) as pooled,
        session_locks(url) as locks,
        session_locks(url) as others,
    ):
        assert pooled
        assert await locks.fetchval("select 1") == await others.fetchval("select 1") == 1  # connected: both begin at once
        await asyncio.gather(ledger.fill_search(pooled, locks), ledger.fill_search(pooled, others))
    assert await pool.fetchval(ledger.SQL["search_is_indexed"])


@pytest.mark.parametrize("url", [""], ids=["C"], indirect=True)
async def test_index_that_is_not_valid_afterwards_is_reported(pool: asyncpg.Pool, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And created at the next try."""
    await pool.execute("drop index atelier.job_search_triples")
    monkeypatch.setattr(ledger, "SEARCH_INDEX_RETRY_SECONDS", 0.01)
    creations = iter(["select", "select 1 / 0", ledger.SQL["create_search_index"]])

    class OtherStatements(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            return next(creations) if name == "create_search_index" else super().__getitem__(name)

    monkeypatch.setattr(ledger, "SQL", OtherStatements(ledger.SQL))
    async with session_locks(url) as locks:
        with capture_logs() as logs:
            await asyncio.wait_for(ledger.index_search(pool, locks), 5)
    errors = [log["error"] for log in logs if log["event"] == "ledger.search_not_indexed"]
    assert (errors, await pool.fetchval(ledger.SQL["search_is_indexed"])) == (["the index is not valid", "division by zero"], True)


@pytest.mark.parametrize("url", [""], ids=["C"], indirect=True)
async def test_pages_have_each_job_once_beside_new_ones(pool: asyncpg.Pool) -> None:
    """Page by page with `before`, newer jobs arriving between the pages; with words beyond the newest thousand jobs as well."""
    await fill(pool, 1200)
    for words in (None, "하늘 harbour", "filled-11"):
        query: dict[str, Any] = {"words": words} if words else {}
        expected = [job.job_id for job in await list_jobs(pool, limit=500, **query)]
        seen: list[str] = []
        while page := await list_jobs(pool, limit=100, **query):
            seen, query["before"] = seen + [job.job_id for job in page], page[-1].created_at
            await pool.execute(INSERT, f"filled-11-{len(seen)}-{words}", "accepted", None, datetime.now(UTC), "하늘 harbour", None)
        assert (seen[:500], len(set(seen))) == (expected, len(seen))
        assert len(seen) >= {None: 1200, "하늘 harbour": 960, "filled-11": 111}[words]


class ExplainedPool:
    """Reads as the pool does, and adds up how many rows the statements have read from the tables and by their indexes."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.rows_read, self.statements = 0.0, 0

    async def fetch(self, statement: str, *arguments: Any) -> Any:
        [plan] = await self._pool.fetchval(f"explain (analyze, format json) {statement}", *arguments)
        self.rows_read, self.statements = self.rows_read + rows_read(plan["Plan"]), self.statements + 1
        return await self._pool.fetch(statement, *arguments)

    async def fetchval(self, statement: str, *arguments: Any) -> Any:
        return await self._pool.fetchval(statement, *arguments)


def rows_read(plan: dict[str, Any]) -> float:
    """By all nodes of a plan that read a table or an index, with the rows that they dropped."""
    own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    scans = "Relation Name" in plan or "Index Name" in plan
    return own * scans + sum(map(rows_read, plan.get("Plans", [])))


@pytest.mark.parametrize("url", [""], ids=["C"], indirect=True)
@pytest.mark.parametrize(("own", "most_read", "statements"), [(2, 10, 1), (1200, 2500, 2)], ids=["few", "many"])
async def test_search_of_a_tenant_costs_as_much_as_its_own_jobs(pool: asyncpg.Pool, own: int, most_read: int, statements: int) -> None:
    """Beside 6,000 newer and older jobs of others that all have the words, which it does not: what others have cannot be measured."""
    await fill(pool, 6000)
    await pool.execute("update atelier.jobs set tenant = 'shop', words = 'lantern' where (substr(job_id, 8)::int * 7) % 6000 < $1", own)
    await pool.execute("vacuum analyze atelier.jobs, atelier.job_search")
    explained = ExplainedPool(pool)
    assert await list_jobs(explained, words="harbour", tenant="shop") == []  # type: ignore[arg-type]
    assert own <= explained.rows_read <= most_read, explained.rows_read
    assert explained.statements == statements


@pytest.mark.parametrize("url", [""], ids=["C"], indirect=True)
async def test_search_with_another_filter_reads_few_candidates(pool: asyncpg.Pool) -> None:
    """The jobs of the filter, where the words are common, and not each job with the words."""
    await fill(pool, 6000)
    await pool.execute("update atelier.jobs set state = 'failed', words = 'lantern' where substr(job_id, 8)::int between 3000 and 4100")
    await pool.execute("vacuum analyze atelier.jobs, atelier.job_search")
    explained = ExplainedPool(pool)
    assert await list_jobs(explained, words="harbour", state="failed") == []  # type: ignore[arg-type]
    assert explained.rows_read <= 12_000, explained.rows_read
