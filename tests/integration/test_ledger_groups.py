"""Events that share a statement of the ledger: the tables are as if each had been written alone. Real Postgres."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import asyncpg
import pytest
from structlog.testing import capture_logs

from actors import ledger
from actors.ledger import EventRecorded, EventRow, store_events
from bus.actor import Context, GroupableWrite, Transactional
from bus.errors import PermanentError
from bus.persistence.inbox import NullInbox
from bus.persistence.pool import apply_schemas, open_pool
from bus.settings import BusSettings
from contracts.event import Event, EventKind, Progress
from contracts.fault import Fault
from tests.support.broker_client import wait_until

START = datetime(2026, 1, 1, tzinfo=UTC)
FAULT = Fault(code="lora-missing", message="x", step="image")
ACCEPTED = {"kind": "image_order", "itinerary": ["image"], "order": {"prompt": "a harbour \0"}}
JOB_COLUMNS = "kind, state, tenant, itinerary, created_at, updated_at, ended_at, result, fault, words, ended_by"
EVENT_COLUMNS = "at, step, kind, message_id, percent, body - 'job_id' as body"
BLOCKED = "select pid from pg_locks where relation = 'atelier.jobs'::regclass and not granted"


@pytest.fixture
async def pool(bus_settings: BusSettings) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(bus_settings) as pool:
        assert pool is not None
        await apply_schemas(pool, [ledger.SQL["schema"]])
        yield pool


@pytest.fixture
def prefix() -> str:
    """Of the ids of this test's jobs."""
    return f"job-{uuid4().hex[:8]}-"


def event(job_id: str, step: str = "image", kind: EventKind = EventKind.COMPLETED, **fields: Any) -> Event:
    return Event.model_validate({"kind": kind, "step": step, "job_id": job_id, "at": START, "message_id": "m"} | fields)


def random_event(rng: random.Random, job_id: str) -> Event:
    """Of few messages, tenants and times, so that most events meet one that is stored."""
    step, kind = rng.choice(["job", "image", "upload"]), rng.choice(list(EventKind))
    fields: dict[str, Any] = {
        "at": START + timedelta(seconds=rng.randrange(8)),
        "message_id": f"m-{rng.randrange(2)}",
        "tenant": rng.choice(["shop", "shop", "shop", "office", None]),
    }
    if step == "job" and kind is EventKind.ACCEPTED:
        fields["result"] = ACCEPTED
    elif kind is EventKind.COMPLETED:
        fields["result"] = {"result_url": f"u-{rng.randrange(9)}"}
    elif kind is EventKind.PROGRESS:
        fields["progress"] = Progress(current_step=1, total_steps=4, progress_percent=25 * rng.randrange(1, 4))
    elif kind is EventKind.FAILED:
        fields["fault"] = FAULT.model_copy(update={"message": f"{rng.randrange(9)}"})
    if step != "job" and rng.random() < 0.5:
        fields["device_seconds"] = rng.randrange(1, 9) / 4
    return event(job_id, step, kind, **fields)


def in_random_groups(rng: random.Random, events: Sequence[Event]) -> list[Sequence[Event]]:
    cuts = sorted(rng.sample(range(1, len(events)), rng.randrange(5)))
    return [events[start:end] for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True)]


async def store(pool: asyncpg.Pool, *events: Event) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await store_events(connection, [EventRow.from_event(one) for one in events])


async def tables(pool: asyncpg.Pool, job_id: str) -> list[Any]:
    jobs = await pool.fetch(f"select {JOB_COLUMNS} from atelier.jobs where job_id = $1", job_id)
    order = "order by step, kind, message_id, percent"
    return [jobs, await pool.fetch(f"select {EVENT_COLUMNS} from atelier.job_events where job_id = $1 {order}", job_id)]


@pytest.mark.parametrize("seed", range(12))
async def test_a_group_of_events_leaves_what_they_leave_one_after_another(pool: asyncpg.Pool, prefix: str, seed: int) -> None:
    """Two jobs, each with its events under two ids; one of them is claimed by a tenant before."""
    rng = random.Random(seed)
    kinds = [(number, random_event(rng, "")) for number in rng.choices((0, 1), k=40)]
    for way in ("alone", "grouped"):
        await pool.execute("insert into atelier.job_claims values ($1, 'image_order', 'x', now(), 'shop')", f"{prefix}{way}-1")
        events = [one.model_copy(update={"job_id": f"{prefix}{way}-{number}"}) for number, one in kinds]
        for group in in_random_groups(rng, events) if way == "grouped" else [[one] for one in events]:
            await store(pool, *group)
    for number in (0, 1):
        alone, grouped = [await tables(pool, f"{prefix}{way}-{number}") for way in ("alone", "grouped")]
        assert alone[0]
        assert grouped == alone


async def test_event_of_another_tenant_in_a_group_is_logged_and_not_stored(pool: asyncpg.Pool, prefix: str) -> None:
    """Within one group as well: the first event of the group sets the tenant."""
    with capture_logs() as logs:
        await store(pool, event(f"{prefix}a", tenant="shop"), event(f"{prefix}b"), event(f"{prefix}a", step="upload", tenant="office"))
    assert [(log["job_id"], log["step"], log["tenant"]) for log in logs if log["event"] == "ledger.event_foreign"] == [
        (f"{prefix}a", "upload", "office")
    ]
    assert await stored_jobs(pool, prefix) == [f"{prefix}a", f"{prefix}b"]


async def stored_jobs(pool: asyncpg.Pool, prefix: str) -> list[str]:
    """The job of each stored event."""
    rows = await pool.fetch("select job_id from atelier.job_events where starts_with(job_id, $1) order by job_id", prefix)
    return [row["job_id"] for row in rows]


async def mark_done(inbox: NullInbox, row: EventRow) -> None:
    write = GroupableWrite(store_events, row, len(row.body))
    await inbox.acquire("ledger", row.job_id, row.job_id)
    await inbox.mark_done("ledger", row.job_id, EventRecorded(), write)


async def test_event_that_the_database_refuses_fails_alone(pool: asyncpg.Pool, prefix: str) -> None:
    """Whether the driver or the server refuses it."""
    rows = [EventRow.from_event(event(f"{prefix}{number}")) for number in range(40)]
    bad = [rows[7]._replace(body="no json"), rows[8]._replace(percent=2**40)]
    inbox = NullInbox(pool)
    results = await asyncio.gather(*(mark_done(inbox, row) for row in [*rows[:7], *bad, *rows[9:]]), return_exceptions=True)
    assert [number for number, result in enumerate(results) if result is not None] == [7, 8]
    assert all(isinstance(results[number], asyncpg.DataError | asyncpg.InternalClientError | ValueError) for number in (7, 8))
    assert await stored_jobs(pool, prefix) == sorted(row.job_id for row in [*rows[:7], *rows[9:]])


async def test_event_with_characters_that_the_database_cannot_store_does_not_fail_its_group(pool: asyncpg.Pool, prefix: str) -> None:
    """NUL and half a character are replaced, also in what the end of a job is recognised by."""
    unstorable = event(f"{prefix}a\0", step="image\0", message_id="m\0", tenant="shop\0")
    rows = [event(f"{prefix}b"), unstorable, event(f"{prefix}c\0", step="job", message_id="m\0")]
    await store(pool, *rows)
    assert await stored_jobs(pool, prefix) == [f"{prefix}a\ufffd", f"{prefix}b", f"{prefix}c\ufffd"]
    jobs, events = await tables(pool, f"{prefix}a\ufffd")
    assert [(job["tenant"], stored["step"], stored["message_id"]) for job, stored in zip(jobs, events, strict=True)] == [
        ("shop\ufffd", "image\ufffd", "m\ufffd")
    ]


async def test_group_whose_connection_is_lost_is_written_after_all(pool: asyncpg.Pool, prefix: str) -> None:
    """Nothing is done before it is committed, and nothing is written twice."""
    inbox, rows = NullInbox(pool), [EventRow.from_event(event(f"{prefix}{number}", device_seconds=1)) for number in range(30)]
    async with pool.acquire() as other:
        async with other.transaction():
            await other.execute("lock table atelier.jobs in access exclusive mode")
            tasks = [asyncio.create_task(mark_done(inbox, row)) for row in rows]

            async def is_blocked() -> bool:
                return bool(await other.fetch(BLOCKED))

            await wait_until(is_blocked)
            assert not any(task.done() for task in tasks)
            await other.execute(f"select pg_terminate_backend(pid) from ({BLOCKED}) as waiting")
        await asyncio.gather(*tasks)
    assert await stored_jobs(pool, prefix) == sorted(row.job_id for row in rows)
    bodies = await pool.fetch("select body from atelier.job_events where starts_with(job_id, $1)", prefix)
    assert [body["body"]["device_seconds"] for body in bodies] == [1] * 30


async def test_what_arrives_while_a_statement_is_under_way_is_written_by_the_next_one(pool: asyncpg.Pool, prefix: str) -> None:
    groups: list[int] = []

    async def write_many(connection: asyncpg.Connection, rows: Sequence[EventRow]) -> None:
        groups.append(len(rows))
        await store_events(connection, rows)

    inbox = NullInbox(pool)
    writes = [GroupableWrite(write_many, EventRow.from_event(event(f"{prefix}{number}"))) for number in range(50)]
    async with pool.acquire() as other, other.transaction():
        await other.execute("lock table atelier.jobs in access exclusive mode")
        tasks = [asyncio.create_task(inbox.mark_done("ledger", str(number), EventRecorded(), writes[number])) for number in range(2)]

        async def is_blocked() -> bool:
            return bool(await other.fetch(BLOCKED))

        await wait_until(is_blocked)
        tasks += [asyncio.create_task(inbox.mark_done("ledger", str(number), EventRecorded(), writes[number])) for number in range(2, 50)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert groups == [2, 48]


async def test_processes_that_write_the_same_jobs_in_another_order_do_not_wait_for_each_other(pool: asyncpg.Pool, prefix: str) -> None:
    """Each would hold one job and wait for the other's, when the third that both wait for becomes free. A deadlock is an error of one."""
    first, second, third = (f"{prefix}{name}" for name in "abc")
    await store(pool, *map(event, (first, second, third)))
    orders = ((second, third, first), (first, third, second))
    async with pool.acquire() as other:
        async with other.transaction():
            await other.execute("select from atelier.jobs where job_id = $1 for update", third)
            stores = [asyncio.create_task(store(pool, *(event(job_id, "upload") for job_id in order))) for order in orders]

            async def both_wait() -> bool:
                return len(await pool.fetch("select from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0")) == 2

            await wait_until(both_wait)
        await asyncio.gather(*stores)
    assert await stored_jobs(pool, prefix) == sorted([first, second, third] * 2)


async def test_statement_that_was_planned_in_a_new_database_reads_no_more_with_many_claims(pool: asyncpg.Pool, prefix: str) -> None:
    """PostgreSQL keeps a statement's plan until the table is analysed: a claim is looked up by the index, however many there are."""
    rows = [EventRow.from_event(event(f"{prefix}{number}")) for number in range(40)]
    await pool.execute("truncate atelier.job_claims")
    async with pool.acquire() as connection, connection.transaction():
        for row in rows[:10]:
            await store_events(connection, [row])
        insert = "insert into atelier.job_claims select $1 || n, 'image_order', 'x' from generate_series(1, 2000) n"
        await connection.execute(insert, f"{prefix}claim-")
        reads = "select seq_tup_read from pg_stat_xact_user_tables where relid = 'atelier.job_claims'::regclass"
        before = await connection.fetchval(reads)
        await store_events(connection, rows[10:])
        assert await connection.fetchval(reads) == before


async def test_handler_gives_the_size_of_its_event_to_the_group() -> None:
    large = event("j", result={"text": "x" * 100_000})
    transactional = await ledger.record_event(large, cast("Context", None))
    assert isinstance(transactional, Transactional)
    write = cast("GroupableWrite", transactional.write)
    assert (write.size, json.loads(write.item.body)["result"]) == (len(write.item.body), large.result)
    assert write.size > 100_000


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"step": "é" * 128}, "id-refused"),
        ({"message_id": "m" * 256}, "id-refused"),
        ({"tenant": "t" * 256}, "id-refused"),
        ({"job_id": "j" * 256}, "id-refused"),
        ({"at": "0001-01-01T00:00:00+14:00"}, "invalid-message"),
        ({"at": "9999-12-31T23:00:00-14:00"}, "invalid-message"),
    ],
)
async def test_event_that_no_database_takes_is_refused_before_its_group(fields: dict[str, Any], code: str) -> None:
    """Hostile input would make every group fail. The longest ids are taken."""
    with pytest.raises(PermanentError) as refused:
        await ledger.record_event(event(**{"job_id": "j"} | fields), cast("Context", None))
    assert refused.value.code == code
    taken = await ledger.record_event(event("j" * 255, "s" * 255, message_id="m" * 255, tenant="t" * 255), cast("Context", None))
    assert isinstance(taken, Transactional)
