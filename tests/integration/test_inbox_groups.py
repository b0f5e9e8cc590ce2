"""Messages that share a statement of the inbox, on a real Postgres: none fails, delays or changes another."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from bus.persistence.group_commit import GroupCommit
from bus.persistence.inbox import LIVENESS_LOCK_CLASS, SCHEMA, SQL, InboxEntry, OwnershipLost, PostgresInbox, open_inbox
from bus.persistence.pool import apply_schemas, open_pool, set_json_codecs
from bus.persistence.session_locks import SessionLocks, connect_session
from bus.settings import BusSettings
from contracts.wire import Result
from ops.local.postgres import EmbeddedPostgres
from tests.support.own_database import own_database, with_database
from tests.support.tcp_proxy import open_proxy

STEP = "echo"
WAITING = "select count(distinct pid) from pg_locks where relation = 'atelier.inbox'::regclass and not granted"
TERMINATE_WAITING = "select pg_terminate_backend(pid) from pg_locks where relation = 'atelier.inbox'::regclass and not granted"


class Number(Result):
    value: float


@pytest.fixture
async def pool(bus_settings: BusSettings) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(bus_settings) as pool:
        assert pool is not None
        await apply_schemas(pool, [SCHEMA])
        yield pool


@asynccontextmanager
async def open_process(pool: asyncpg.Pool, database_url: str) -> AsyncIterator[PostgresInbox]:
    """The inbox of a process of its own: it has its own liveness lock, which the server frees at the end."""
    locks = SessionLocks(lambda: connect_session(database_url))
    try:
        async with open_inbox(pool, locks) as inbox:
            assert isinstance(inbox, PostgresInbox)
            yield inbox
    finally:
        await locks.close()


@pytest.fixture
async def inbox(pool: asyncpg.Pool, database_url: str) -> AsyncIterator[PostgresInbox]:
    async with open_process(pool, database_url) as inbox:
        yield inbox


@pytest.fixture
async def other(pool: asyncpg.Pool, database_url: str) -> AsyncIterator[PostgresInbox]:
    async with open_process(pool, database_url) as inbox:
        yield inbox


@pytest.fixture
def ids() -> list[str]:
    run = uuid4().hex
    return [f"{run}-{number}#" for number in range(5)]


async def acquire_all(inbox: PostgresInbox, ids: list[str]) -> list[InboxEntry]:
    async with asyncio.timeout(10):
        return await asyncio.gather(*(inbox.acquire(STEP, entry_id, "job", [entry_id.rstrip("#")]) for entry_id in ids))


async def stored(pool: asyncpg.Pool, ids: list[str]) -> dict[str, asyncpg.Record]:
    rows = await pool.fetch("select message_id, owner, result, deaths from atelier.inbox where message_id = any($1::text[])", ids)
    return {row["message_id"]: row for row in rows}


@asynccontextmanager
async def written_by_nobody(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Statements that write to the inbox wait until the end of the block."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("lock table atelier.inbox in share row exclusive mode")
        yield connection


async def wait_for_statement(connection: asyncpg.Connection, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while await connection.fetchval(WAITING) < count:
            await asyncio.sleep(0.005)


async def test_messages_that_arrive_together_share_a_statement(pool: asyncpg.Pool, inbox: PostgresInbox, ids: list[str]) -> None:
    """One transaction wrote them: their rows have its number."""
    await acquire_all(inbox, ids)
    acquired = await pool.fetch("select distinct xmin::text from atelier.inbox where message_id = any($1::text[])", ids)
    await asyncio.gather(*(inbox.mark_done(STEP, entry_id, Number(value=1), None) for entry_id in ids))
    done = await pool.fetch("select distinct xmin::text from atelier.inbox where message_id = any($1::text[])", ids)
    assert (len(acquired), len(done)) == (1, 1)
    assert acquired != done


async def test_results_and_acquisitions_share_a_statement(pool: asyncpg.Pool, inbox: PostgresInbox, ids: list[str]) -> None:
    await acquire_all(inbox, ids[:2])
    done = (inbox.mark_done(STEP, entry_id, Number(value=1), None) for entry_id in ids[:2])
    await asyncio.gather(*done, *(inbox.acquire(STEP, entry_id, "job") for entry_id in ids[2:]))
    assert len(await pool.fetch("select distinct xmin::text from atelier.inbox where message_id = any($1::text[])", ids)) == 1
    rows = await stored(pool, ids)
    assert [(rows[entry_id]["owner"], rows[entry_id]["result"]) for entry_id in ids] == [(None, {"value": 1})] * 2 + [
        (inbox.owner, None)
    ] * 3


async def test_each_message_gets_its_own_entry(pool: asyncpg.Pool, inbox: PostgresInbox, database_url: str, ids: list[str]) -> None:
    """One is done, one was done in an earlier release, one crashed its process, one's job is cancelled, one is new."""
    done, former, crashed, cancelled, new = ids
    job = uuid4().hex
    await inbox.acquire(STEP, done, "job")
    await inbox.mark_done(STEP, done, Number(value=1), None)
    await pool.execute("insert into atelier.inbox values ($1, $2, null, $3, now())", STEP, former.rstrip("#"), {"value": 2})
    async with open_process(pool, database_url) as other:
        await other.acquire(STEP, crashed, "job")
    await inbox.cancel(job)
    jobs = dict.fromkeys(ids, "job") | {cancelled: job}
    async with asyncio.timeout(10):
        entries = await asyncio.gather(*(inbox.acquire(STEP, entry_id, jobs[entry_id], [entry_id.rstrip("#")]) for entry_id in ids))
    assert entries == [
        InboxEntry({"value": 1}, False),
        InboxEntry({"value": 2}, False, former=True),
        InboxEntry(None, False, crash_count=1),
        InboxEntry(None, True),
        InboxEntry(None, False),
    ]
    assert {entry_id for entry_id, row in (await stored(pool, ids)).items() if row["owner"] == inbox.owner} == {crashed, cancelled, new}


async def test_process_without_its_liveness_lock_acquires_nothing(pool: asyncpg.Pool, database_url: str, ids: list[str]) -> None:
    """Neither a group nor, after it, a single message: another process would take it at once, and count a crash."""
    locks = SessionLocks(lambda: connect_session(database_url))
    lockless = PostgresInbox(pool, locks)
    acquired = asyncio.create_task(acquire_all(lockless, ids))
    await asyncio.sleep(0.3)
    assert (acquired.done(), await stored(pool, ids)) == (False, {})
    await locks.fetchval(SQL["hold_liveness_lock"], LIVENESS_LOCK_CLASS, lockless.owner)
    assert await acquired == [InboxEntry(None, False)] * 5
    await locks.close()


async def test_running_message_of_an_earlier_release_is_not_acquired(
    pool: asyncpg.Pool, inbox: PostgresInbox, other: PostgresInbox, ids: list[str]
) -> None:
    former = ids[0].rstrip("#")
    await other.acquire(STEP, former, "job")
    waiting = asyncio.create_task(inbox.acquire(STEP, ids[0], "job", [former]))
    assert [entry.crash_count for entry in await acquire_all(inbox, ids[1:])] == [0] * 4
    assert not waiting.done()
    await other.mark_done(STEP, former, Number(value=3), None)
    assert await asyncio.wait_for(waiting, 10) == InboxEntry({"value": 3}, False, former=True)


async def test_refused_result_fails_alone(pool: asyncpg.Pool, inbox: PostgresInbox, ids: list[str]) -> None:
    """JSON has no NaN: the statement of the group fails as a whole."""
    await acquire_all(inbox, ids)
    results = [Number(value=float("nan") if entry_id == ids[2] else 1) for entry_id in ids]
    marked = (inbox.mark_done(STEP, entry_id, result, None) for entry_id, result in zip(ids, results, strict=True))
    errors = await asyncio.gather(*marked, return_exceptions=True)
    assert [type(error) for error in errors] == [type(None)] * 2 + [asyncpg.InvalidTextRepresentationError] + [type(None)] * 2
    rows = await stored(pool, ids)
    assert [rows[entry_id]["result"] for entry_id in ids] == [{"value": 1}] * 2 + [None] + [{"value": 1}] * 2


async def test_refused_id_fails_alone(inbox: PostgresInbox, ids: list[str]) -> None:
    """Postgres stores no U+0000. The message can be tried again: it is not in flight any more."""
    ids[2] += "\x00"
    acquired = (inbox.acquire(STEP, entry_id, "job") for entry_id in ids)
    entries = await asyncio.gather(*acquired, return_exceptions=True)
    new = InboxEntry(None, False)
    assert [entry for entry in entries if isinstance(entry, InboxEntry)] == [new] * 4
    assert isinstance(entries[2], asyncpg.CharacterNotInRepertoireError)
    with pytest.raises(asyncpg.CharacterNotInRepertoireError):
        await asyncio.wait_for(inbox.acquire(STEP, ids[2], "job"), 10)


async def test_lost_ownership_is_reported_alone(pool: asyncpg.Pool, inbox: PostgresInbox, other: PostgresInbox, ids: list[str]) -> None:
    await acquire_all(inbox, ids)
    await pool.execute("update atelier.inbox set owner = $1 where message_id = $2", other.owner, ids[0])
    marked = (inbox.mark_done(STEP, entry_id, Number(value=1), None) for entry_id in ids)
    errors = await asyncio.gather(*marked, return_exceptions=True)
    assert [type(error) for error in errors] == [OwnershipLost] + [type(None)] * 4
    assert (await stored(pool, ids))[ids[0]]["owner"] == other.owner


async def test_lost_connection_repeats_every_message(pool: asyncpg.Pool, inbox: PostgresInbox, ids: list[str]) -> None:
    async with written_by_nobody(pool) as connection:
        acquired = asyncio.create_task(acquire_all(inbox, ids))
        await wait_for_statement(connection)
        await connection.execute(TERMINATE_WAITING)
    assert [entry.crash_count for entry in await acquired] == [0] * 5
    async with written_by_nobody(pool) as connection:
        marked = [asyncio.create_task(inbox.mark_done(STEP, entry_id, Number(value=1), None)) for entry_id in ids]
        await wait_for_statement(connection)
        await connection.execute(TERMINATE_WAITING)
    await asyncio.wait_for(asyncio.gather(*marked), 10)
    assert [row["result"] for row in (await stored(pool, ids)).values()] == [{"value": 1}] * 5


async def test_message_acquired_for_a_cancelled_caller_is_released(
    pool: asyncpg.Pool, inbox: PostgresInbox, other: PostgresInbox, ids: list[str]
) -> None:
    """Otherwise it would belong to this process for as long as it lives, and another that gets it would wait."""
    async with written_by_nobody(pool) as connection:
        tasks = [asyncio.create_task(inbox.acquire(STEP, entry_id, "job")) for entry_id in ids]
        await wait_for_statement(connection)
        tasks[0].cancel()
        tasks[1].cancel()
        again = asyncio.create_task(inbox.acquire(STEP, ids[1], "job"))
    assert await asyncio.gather(*tasks[2:], again) == [InboxEntry(None, False)] * 4
    assert await asyncio.wait_for(other.acquire(STEP, ids[0], "job"), 10) == InboxEntry(None, False)
    owners = {entry_id: row["owner"] for entry_id, row in (await stored(pool, ids)).items()}
    assert owners == dict.fromkeys(ids, inbox.owner) | {ids[0]: other.owner}


async def test_message_of_a_cancelled_caller_is_not_acquired_again_before_its_release(
    pool: asyncpg.Pool, inbox: PostgresInbox, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release would take the message from the delivery that has acquired it meanwhile."""
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def release_late(keys: Sequence[tuple[str, str]]) -> list[None]:
        begun.set()
        await may_end.wait()
        return await inbox._release_group(keys)

    monkeypatch.setattr(inbox, "_releases", GroupCommit(release_late))
    async with written_by_nobody(pool) as connection:
        task = asyncio.create_task(inbox.acquire(STEP, ids[0], "job"))
        await wait_for_statement(connection)
        task.cancel()
    await asyncio.wait_for(begun.wait(), 10)
    again = asyncio.create_task(inbox.acquire(STEP, ids[0], "job"))
    await asyncio.sleep(0.05)
    assert not again.done()
    may_end.set()
    assert await asyncio.wait_for(again, 10) == InboxEntry(None, False)
    assert (await stored(pool, ids))[ids[0]]["owner"] == inbox.owner


async def test_process_that_ends_releases_what_it_acquired_for_cancelled_callers(
    pool: asyncpg.Pool, other: PostgresInbox, database_url: str, ids: list[str]
) -> None:
    """An entry of a process that is gone counts as a crash of the message."""
    async with open_process(pool, database_url) as inbox:
        async with written_by_nobody(pool) as connection:
            tasks = [asyncio.create_task(inbox.acquire(STEP, entry_id, "job")) for entry_id in ids]
            await wait_for_statement(connection)
            for task in tasks:
                task.cancel()
        await asyncio.wait(tasks)
    assert not inbox._background
    assert [entry.crash_count for entry in await acquire_all(other, ids)] == [0] * 5


async def test_process_that_ends_waits_for_the_statements_of_cancelled_callers(
    pool: asyncpg.Pool, other: PostgresInbox, database_url: str, ids: list[str]
) -> None:
    """It ends before their statement: what that acquires is released, before the pool is closed."""
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(written_by_nobody(pool))
        async with open_process(pool, database_url) as inbox:
            tasks = [asyncio.create_task(inbox.acquire(STEP, entry_id, "job")) for entry_id in ids]
            await wait_for_statement(connection)
            for task in tasks:
                task.cancel()
            closing = asyncio.create_task(inbox.close())
            await asyncio.sleep(0.01)
            assert not closing.done()
            await stack.aclose()
            await asyncio.wait_for(closing, 10)
            assert await stored(pool, ids) == {}
    assert [entry.crash_count for entry in await acquire_all(other, ids)] == [0] * 5


async def test_result_of_a_cancelled_caller_that_is_stored_stays(pool: asyncpg.Pool, inbox: PostgresInbox, ids: list[str]) -> None:
    """The worker releases the message then. It must not run again while its result is under way."""
    await acquire_all(inbox, ids)

    async def mark_done_or_release(entry_id: str) -> None:
        try:
            await inbox.mark_done(STEP, entry_id, Number(value=1), None)
        except BaseException:
            await asyncio.shield(inbox.release(STEP, entry_id))
            raise

    async with written_by_nobody(pool) as connection:
        tasks = [asyncio.create_task(mark_done_or_release(entry_id)) for entry_id in ids]
        await wait_for_statement(connection)
        tasks[0].cancel()
        again = asyncio.create_task(inbox.acquire(STEP, ids[0], "job"))
    await asyncio.wait_for(asyncio.gather(*tasks[1:]), 10)
    assert (await asyncio.wait_for(again, 10)).result == {"value": 1}
    assert tasks[0].cancelled()
    assert [row["result"] for row in (await stored(pool, ids)).values()] == [{"value": 1}] * 5


async def test_cancelled_release_is_completed(pool: asyncpg.Pool, inbox: PostgresInbox, other: PostgresInbox, ids: list[str]) -> None:
    """Also one whose statement has not gone yet: otherwise the message would belong to this process for as long as it lives."""
    await acquire_all(inbox, ids)
    async with written_by_nobody(pool) as connection:
        tasks = [asyncio.create_task(inbox.release(STEP, ids[0]))]
        await wait_for_statement(connection)
        tasks += [asyncio.create_task(inbox.release(STEP, entry_id)) for entry_id in ids[1:]]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
    await asyncio.wait_for(asyncio.gather(tasks[0], *tasks[2:]), 10)
    assert await asyncio.wait_for(other.acquire(STEP, ids[1], "job"), 10) == InboxEntry(None, False)
    assert [*(await stored(pool, ids))] == [ids[1]]


async def test_open_transaction_delays_no_neighbour(pool: asyncpg.Pool, inbox: PostgresInbox, database_url: str, ids: list[str]) -> None:
    """A machine that vanished between a result and the actor's own write: its transaction may stay open for hours, its lock is gone."""
    async with open_process(pool, database_url) as vanished:
        await vanished.acquire(STEP, ids[0], "job")
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        assert await connection.fetchval(SQL["mark_done"], STEP, ids[0], vanished.owner, "{}")
        changed = asyncio.create_task(inbox.acquire(STEP, ids[0], "job"))
        assert len(await acquire_all(inbox, ids[1:])) == 4
        await asyncio.wait_for(asyncio.gather(*(inbox.mark_done(STEP, entry_id, Number(value=1), None) for entry_id in ids[1:])), 10)
        assert not changed.done()
        await transaction.rollback()
    assert await asyncio.wait_for(changed, 10) == InboxEntry(None, False, crash_count=1)


async def test_locked_entry_delays_no_neighbour(pool: asyncpg.Pool, inbox: PostgresInbox, ids: list[str]) -> None:
    """Its result waits alone, and is stored."""
    await acquire_all(inbox, ids[:2])
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("select from atelier.inbox where message_id = $1 for update", ids[0])
        locked, free = [asyncio.create_task(inbox.mark_done(STEP, entry_id, Number(value=1), None)) for entry_id in ids[:2]]
        assert len(await acquire_all(inbox, ids[2:])) == 3
        await asyncio.wait_for(free, 10)
        assert not locked.done()
    await asyncio.wait_for(locked, 10)
    assert (await stored(pool, ids))[ids[0]]["result"] == {"value": 1}


async def test_silent_connection_holds_up_the_inbox_for_one_statement(
    postgres: EmbeddedPostgres, bus_settings: BusSettings, monkeypatch: pytest.MonkeyPatch, ids: list[str]
) -> None:
    """The server behind it responds neither to the statement of the group nor to its cancellation."""
    monkeypatch.setattr("bus.persistence.pool.STATEMENT_TIMEOUT_SECONDS", 0.5)
    async with open_proxy(postgres.identity.port) as proxy:
        url = postgres.url.replace(f":{postgres.identity.port}/", f":{proxy.port}/")
        async with open_pool(with_database(bus_settings, url)) as pool:
            assert pool is not None
            await apply_schemas(pool, [SCHEMA])
            async with open_process(pool, postgres.url) as inbox:
                await acquire_all(inbox, ids)
                proxy.half_open()
                await asyncio.wait_for(asyncio.gather(*(inbox.mark_done(STEP, entry_id, Number(value=1), None) for entry_id in ids)), 10)
                assert [entry.result for entry in await acquire_all(inbox, ids)] == [{"value": 1}] * 5


async def test_two_processes_share_out_the_same_messages(inbox: PostgresInbox, other: PostgresInbox) -> None:
    """In opposite orders: each message is acquired by exactly one of them, and the other gets its result."""
    run = uuid4().hex
    ids = [f"{run}-{number}" for number in range(100)]

    async def handle(process: PostgresInbox, entry_id: str) -> bool:
        entry = await process.acquire(STEP, entry_id, "job")
        if entry.result is None:
            await process.mark_done(STEP, entry_id, Number(value=1), None)
        return entry.result is None

    async with asyncio.timeout(20):
        ran = await asyncio.gather(*(handle(inbox, entry_id) for entry_id in ids), *(handle(other, entry_id) for entry_id in ids[::-1]))
    assert [ours + theirs for ours, theirs in zip(ran[:100], ran[:99:-1], strict=True)] == [1] * 100


@pytest.mark.parametrize("query", ["group", "release"])
async def test_plan_made_for_an_empty_table_reads_the_index(database_url: str, query: str) -> None:
    """Of prepared statements the plan stays: reading the whole table, which costs little while it is empty, would get slower and slower."""
    arguments = {
        "group": """'{a}', '{b}', '{c}', '{d}', '{e}', '{a}', '{f}', '{"{}"}', 1, 2""",
        "release": "'{a}', '{b}', 1",
    }
    async with own_database(database_url) as (url, *_):
        connection = await asyncpg.connect(url)
        await set_json_codecs(connection)
        await connection.execute(SCHEMA)
        await connection.execute(f"set plan_cache_mode = force_generic_plan; prepare prepared as {SQL[query]}")
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain execute prepared({arguments[query]})"))
        planned_for_any_arguments = await connection.fetchval("select sum(generic_plans) = 1 from pg_prepared_statements where from_sql")
        await connection.close()
    assert planned_for_any_arguments
    assert "using inbox_pkey on inbox" in plan
    assert "Seq Scan on inbox" not in plan
    assert "Seq Scan on cancelled" not in plan
