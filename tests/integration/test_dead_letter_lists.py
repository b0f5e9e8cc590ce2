"""Lists and groups of dead letters, compared with a plain reading of all letters, after random changes and beside concurrent ones."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from bus.dead_letters import lists
from bus.dead_letters.record import DeadLetterRecord
from bus.dead_letters.repository import ALLOWED_TRANSITIONS, SCHEMA, DeadLetterRepository
from bus.persistence.pool import apply_schemas, open_pool
from bus.settings import BusSettings
from contracts.dead_letter import DeadLetterGroup, Selection
from contracts.event import Event, EventKind
from tests.support.dead_letter_records import make_record
from tests.support.own_database import own_database

START = datetime(2026, 1, 1, 22, tzinfo=UTC)
STEPS, CODES, TENANTS = ("image", "업로드"), ("engine-crash", "끊김"), (None, "가게", "shop")
EXCEPTIONS, STATES = (None, "KeyError"), ("unresolved", "replay-requested", "resolved", "failed-again", "archived")
CELLS_OF_COUNTS = """
select hour, group_id, step, code, exception_type, state, letters, first_failed_at, last_failed_at from atelier.dead_letter_counts
order by 1, 2, 3, 4, 5, 6
"""
CELLS_OF_LETTERS = """
select date_trunc('hour', last_failed_at, 'UTC'), group_id, step, code, exception_type, state, count(*), min(first_failed_at),
    max(last_failed_at)
from atelier.dead_letters group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6
"""
Row = Mapping[str, Any]


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    """Of a database with nothing else in it."""
    async with (
        own_database(database_url) as (url, _, _),
        open_pool(BusSettings.model_validate({"amqp_url": "amqp://none", "database_url": url})) as pool,
    ):
        await apply_schemas(pool, [SCHEMA])
        yield pool


def random_time(source: random.Random) -> datetime:
    """Few times, so that some are equal; on the hour, in it, and at its end."""
    return START + timedelta(hours=source.randrange(4), seconds=source.choice((0, 1, 1800, 3599.999999)))


def random_record(source: random.Random) -> DeadLetterRecord:
    """Of few messages: the same message fails again, also for another cause."""
    record = make_record(message_id=f"m-{source.randrange(60)}", correlation_id=f"j-{source.randrange(9)}")
    last = random_time(source)
    changes: dict[str, Any] = {
        "failure_id": f"{source.random()}",
        "step": source.choice(STEPS),
        "code": source.choice(CODES),
        "tenant": source.choice(TENANTS),
        "exception_type": source.choice(EXCEPTIONS),
        "message": f"at {source.randrange(100)}",
        "last_failed_at": last,
        "first_failed_at": last - timedelta(minutes=source.randrange(90)),
    }
    return replace(record, **changes)


async def change_something(source: random.Random, repository: DeadLetterRepository, pool: asyncpg.Pool) -> None:
    """One change as workers and operators make it, or the merge of the counts."""
    kind = source.randrange(7)
    some = Selection(ids=[row["id"] for row in await pool.fetch("select id from atelier.dead_letters") if source.random() < 0.2])
    if kind <= 1:
        await repository.insert([random_record(source) for _ in range(source.randrange(1, 12))])
    elif kind == 2:
        await repository.change_state(some, source.choice(list(ALLOWED_TRANSITIONS)), by="", dry_run=False)
    elif kind == 3:
        step, at = source.choice(STEPS), START + timedelta(days=1)
        event = Event(kind=EventKind.COMPLETED, step=step, job_id="j", at=at, message_id=f"m-{source.randrange(60)}")
        async with pool.acquire() as connection:
            await repository.apply_event(event, connection)
    elif kind == 4:
        await repository.purge(Selection(state=source.choice(STATES)), unchanged_since=datetime.now(UTC), dry_run=False)
    elif kind == 5:
        changed = "update atelier.dead_letters set sent_as = id, group_id = $2 where id = any($1::text[])"
        await pool.execute(changed, (some.ids or [])[:3], source.choice(("", "group", "그룹")))
    else:
        await pool.execute("select atelier.merge_dead_letter_counts()")


def random_selection(source: random.Random, rows: list[Row]) -> Selection:
    """Filters that some letter has, mostly."""
    row = source.choice(rows)
    values = {name: row[column] for name, column in FILTERED.items()} | {
        "message_id": source.choice((row["message_id"], row["sent_as"])),
        "ids": [row["id"], source.choice(rows)["id"], "nobody"],
        "since": random_time(source),
        "before": random_time(source),
    }
    return Selection(**{name: values[name] for name in source.sample(list(values), source.choice((0, 1, 1, 2, 3)))})


FILTERED = {"group": "group_id"} | {name: name for name in ("step", "code", "exception_type", "tenant", "state", "job_id")}


def selects(selection: Selection, row: Row) -> bool:
    return (
        all(getattr(selection, name) in (None, row[column]) for name, column in FILTERED.items())
        and (selection.ids is None or row["id"] in selection.ids)
        and (selection.message_id is None or selection.message_id in (row["message_id"], row["sent_as"]))
        and (selection.since is None or row["last_failed_at"] >= selection.since)
        and (selection.before is None or row["last_failed_at"] < selection.before)
    )


def latest_first(row: Row) -> tuple[float, str]:
    return -row["last_failed_at"].timestamp(), row["id"]


def group(rows: list[Row], *, by_tenant: bool, per: str | None) -> dict[Any, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        hour = row["last_failed_at"].replace(minute=0, second=0, microsecond=0)
        at = {None: None, "hour": hour, "day": hour.replace(hour=0)}[per]
        groups[row["group_id"], row["tenant"] if by_tenant else None, at].append(row)
    return groups


def check_group(group: DeadLetterGroup, rows: list[Row]) -> None:
    states = [row["state"] for row in rows]
    latest = min(rows, key=latest_first)
    assert group.states == {state: states.count(state) for state in set(states)}
    assert (group.letters, group.last_failed_at) == (len(rows), latest["last_failed_at"])
    assert group.first_failed_at == min(row["first_failed_at"] for row in rows)
    for name in ("step", "code", "exception_type", "message", "shape"):
        assert getattr(group, name) == latest[name], name


@pytest.mark.parametrize("seed", range(3))
async def test_lists_and_groups_are_those_of_a_plain_reading(pool: asyncpg.Pool, seed: int) -> None:
    source, repository = random.Random(seed), DeadLetterRepository(pool)
    await repository.insert([random_record(source) for _ in range(40)])
    for _ in range(25):
        await change_something(source, repository, pool)
        if not (rows := await pool.fetch("select * from atelier.dead_letters")):
            continue
        for _ in range(6):
            selection, limit, offset = random_selection(source, rows), source.choice((1, 3, 50)), source.choice((0, 0, 2, 60))
            found = sorted(
                (row for row in rows if selects(selection, row)), key=lambda row: (-row["last_failed_at"].timestamp(), row["id"])
            )
            page = await repository.find(selection, limit, offset)
            assert (page.total, [letter.id for letter in page.letters]) == (
                len(found),
                [row["id"] for row in found[offset : offset + limit]],
            ), selection
            by_tenant, per = source.random() < 0.5, source.choice((None, "hour", "day"))
            groups, expected = await repository.groups(selection, by_tenant=by_tenant, per=per), group(found, by_tenant=by_tenant, per=per)
            assert {(one.group_id, one.tenant, one.at) for one in groups} == expected.keys(), selection
            assert [one.letters for one in groups] == sorted((len(members) for members in expected.values()), reverse=True)
            for one in groups:
                check_group(one, expected[one.group_id, one.tenant, one.at])


async def test_counts_are_right_in_every_snapshot_beside_writers(pool: asyncpg.Pool) -> None:
    """Writers wait for nobody, also while counts are merged; a reader finds in one snapshot as many letters as are counted."""
    repository = DeadLetterRepository(pool)
    await repository.insert([random_record(random.Random(0)) for _ in range(20)])

    async def write(seed: int) -> None:
        for number in range(30):
            await change_something(random.Random(f"{seed} {number}"), repository, pool)

    writers = asyncio.gather(*(write(seed) for seed in range(4)))
    statement, values = lists.list_statement(Selection(), 1, 0)
    compared = set()
    async with pool.acquire() as reader:
        while not writers.done() or not compared:
            async with reader.transaction(isolation="repeatable_read"):
                letters = await reader.fetchval("select count(*) from atelier.dead_letters")
                counted = await reader.fetchval(lists.SQL["total"].format(conditions="true"))
                rows = await reader.fetch(statement, *values)
            assert (counted, [row["total"] for row in rows]) == (letters, [letters][: len(rows)])
            compared.add(letters)
    await writers
    assert len(compared) > 1
    await pool.execute("select atelier.merge_dead_letter_counts()")
    assert await pool.fetchval("select bool_and(merged and exact) from atelier.dead_letter_counts")
    assert await pool.fetch(CELLS_OF_COUNTS) == await pool.fetch(CELLS_OF_LETTERS)


async def test_dead_letters_of_an_earlier_release_are_counted(pool: asyncpg.Pool) -> None:
    """Those that were stored before the counts, and none twice when a process starts again; none are left when the table is emptied.

    Readers go on meanwhile, and no lock is made stronger, which could deadlock.
    """
    repository = DeadLetterRepository(pool)
    for name in ("added", "added_together", "changed", "removed", "truncated"):
        await pool.execute(f"drop trigger dead_letters_{name} on atelier.dead_letters")
    await pool.execute("drop table atelier.dead_letter_counts; create index dead_letters_group on atelier.dead_letters (group_id)")
    for name in ("group_time", "tenant", "job", "message"):
        await pool.execute(f"drop index atelier.dead_letters_{name}")
    await repository.insert([replace(random_record(random.Random(number)), message_id=f"m-{number}") for number in range(7)])
    assert not await repository.schema_exists()
    async with pool.acquire() as reader, reader.transaction():
        await reader.execute("lock table atelier.dead_letters in access share mode")
        await asyncio.wait_for(apply_schemas(pool, [SCHEMA]), 5)
    for _ in range(2):
        await apply_schemas(pool, [SCHEMA])
    stored = await pool.fetchval("select count(*) from atelier.dead_letters")
    assert (await repository.schema_exists(), (await repository.find(Selection(), 50)).total) == (True, stored)
    await pool.execute("truncate atelier.dead_letters cascade")
    assert (await repository.find(Selection(), 50)).total == await repository.count(Selection(step="image")) == 0


async def test_dead_letters_are_counted_once_beside_the_trigger_of_an_earlier_release(pool: asyncpg.Pool) -> None:
    """It counted each row, and is disabled. A process of that release finds it by its name, and adds none when it starts."""
    repository = DeadLetterRepository(pool)
    await pool.execute("drop trigger dead_letters_added_together on atelier.dead_letters")
    await pool.execute("alter table atelier.dead_letters enable trigger dead_letters_added")
    for start, release in enumerate(("earlier", "this", "this again")):
        for number in range(9):
            name = f"{start}-{number}"
            await repository.insert([replace(random_record(random.Random(number)), message_id=name, id=name, failure_id=name)])
        assert await pool.fetchval("select sum(letters) from atelier.dead_letter_counts") == 9 * (start + 1), release
        async with pool.acquire() as reader, reader.transaction():
            await reader.execute("lock table atelier.dead_letters in access share mode")
            await asyncio.wait_for(apply_schemas(pool, [SCHEMA]), 5)


@pytest.mark.parametrize("seed", range(3))
async def test_group_of_dead_letters_leaves_what_they_leave_one_after_another(pool: asyncpg.Pool, seed: int) -> None:
    """Messages that fail again, failures that are delivered again, and a dead letter that was sent edited, which fails as another one."""
    source, repository, left = random.Random(seed), DeadLetterRepository(pool), []
    edited = replace(random_record(source), id="edited", message_id="edited")
    records = [random_record(source) for _ in range(80)]
    records += source.sample(records, 20)
    stored = "select to_jsonb(letter) - 'changed_at' as letter from atelier.dead_letters letter order by id"
    failures = "select to_jsonb(entry) - 'number' as entry from atelier.dead_letter_history as entry order by letter_id, failure_id"
    for size in (1, 7, 100):
        await pool.execute("truncate atelier.dead_letters cascade")
        await repository.insert([edited])
        await pool.execute("update atelier.dead_letters set sent_as = 'm-1', dead_queue = $1, edited_body = '{}'", records[0].dead_queue)
        for start in range(0, len(records), size):
            await repository.insert(records[start : start + size])
        counted = await pool.fetchval("select sum(letters) from atelier.dead_letter_counts")
        left.append((await pool.fetch(stored), await pool.fetch(failures), counted))
    assert left[0] == left[1] == left[2]
    assert left[0][2] == len(left[0][0])


async def test_groups_are_limited_to_the_newest_periods_or_the_largest(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = DeadLetterRepository(pool)
    record = random_record(random.Random(0))
    for hour in range(4):
        at = START + timedelta(hours=hour)
        same = {"step": f"step-{hour}", "first_failed_at": at, "last_failed_at": at}
        ids = [f"{hour}-{number}" for number in range(4 - hour)]
        await repository.insert([replace(record, id=name, failure_id=name, message_id=name, **same) for name in ids])
    monkeypatch.setattr(lists, "MAX_GROUPS", 2)
    assert [group.letters for group in await repository.groups(Selection())] == [4, 3]
    assert [group.letters for group in await repository.groups(Selection(), per="hour")] == [2, 1]
    assert [group.at for group in await repository.groups(Selection(), per="hour")] == [START + timedelta(hours=hour) for hour in (2, 3)]


async def test_page_of_a_rare_filter_reads_few_dead_letters(pool: asyncpg.Pool) -> None:
    """Beside 3,000 dead letters of other causes, which are not read."""
    repository, rare = DeadLetterRepository(pool), Selection(code="rare")
    records = [replace(random_record(random.Random(number)), message_id=f"m-{number}", id=f"{number}") for number in range(60)]
    await repository.insert(records)
    await pool.execute("update atelier.dead_letters set code = 'rare', group_id = 'rare' where id in ('1', '2')")
    columns = "dead_queue, step, job_id, tenant, code, message, stack, shape, attempts, headers, body, size, state, group_id"
    await pool.execute(
        f"insert into atelier.dead_letters (id, message_id, sent_as, first_failed_at, last_failed_at, {columns}) "
        f"select copy || id, copy || id, copy || id, first_failed_at, last_failed_at, {columns} "
        "from atelier.dead_letters, generate_series(1, 50) n, concat(n, '-') copy "
        "where code <> 'rare'"
    )
    await pool.execute("analyze atelier.dead_letters; analyze atelier.dead_letter_counts")
    statement, values = lists.list_statement(rare, 50, 0)
    plan = (await pool.fetchval(f"explain (analyze, format json) {statement}", *values))[0]["Plan"]
    assert (await repository.find(rare, 50)).total == 2
    assert max(letters_read(plan)) <= 2


def letters_read(plan: dict[str, Any]) -> list[float]:
    """How many rows of the letters each node of a plan has read, with those that it dropped."""
    own = [(plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]]
    return (own if plan.get("Relation Name") == "dead_letters" else []) + [
        count for child in plan.get("Plans", []) for count in letters_read(child)
    ]
