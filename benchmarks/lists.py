"""How long lists and groups of jobs and dead letters take with few rows and with many: a part of `atelier bench ledger`.

The database generates the rows; the queries are those of the ledger and of the dead-letter repository.
"""

import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import asyncpg
from rich.progress import Progress

from actors import ledger
from bus.actor import Context
from bus.dead_letters.repository import SCHEMA, DeadLetterRepository
from bus.persistence.pool import apply_schemas
from contracts.dead_letter import Selection
from contracts.event import Progress as OrderProgress
from contracts.job import ListJobs

REPETITIONS = 9
FILL_BATCH = 10_000
INSERT_JOBS = """
insert into atelier.jobs (job_id, kind, state, tenant, created_at, updated_at, words)
select 'filled-' || n, 'image_order', (array['running', 'completed', 'failed'])[1 + n % 3], 'tenant-' || n % 50,
    now() - n * interval '1 second', now(), concat_ws(' ', 'a harbour at night, oil on canvas, lantern', n, (
        select string_agg(words[1 + (hashint4(n + part * 1000003) & 31)], ' ' order by part) from generate_series(1, 12) part
    ))
from generate_series($1::integer, $2::integer) n, string_to_array(
    'amber birds bridge castle cloud coral desert dragon fern field forest fox garden glass gold ice '
    'island lake linen lion marble meadow mist moon mountain ocean river rose sand snow stone tower', ' '
) words
"""
"""Of 32 words each job has twelve: a third of all jobs has a given one, one in a hundred a given pair of neighbours."""
STORE_LONG_JOB = """
insert into atelier.jobs (job_id, state, created_at, updated_at, words)
select 'long', 'accepted', now(), now(), left(string_agg(md5(n::text), ' '), $1) from generate_series(1, 300) n
"""
INSERT_DEAD_LETTERS = """
insert into atelier.dead_letters (id, dead_queue, step, message_id, sent_as, job_id, tenant, group_id, code, message, stack, shape,
    attempts, headers, body, size, state, first_failed_at, last_failed_at)
select 'filled-' || n, 'atelier.dead.image', 'image', 'm-' || n, 'm-' || n, 'j-' || n, 'tenant-' || n % 50, 'group-' || n % 40,
    'engine-crash', 'the device was lost', 'a stack', '[]', 3, '{}', '{"prompt": "a fox"}', 19,
    (array['unresolved', 'resolved'])[1 + n % 2], now() - n * interval '1 second', now() - n * interval '1 second'
from generate_series($1::integer, $2::integer) n
"""
Milliseconds = dict[str, float]


async def measure_lists(rows: Sequence[int], pool: asyncpg.Pool) -> dict[int, Milliseconds]:
    """Milliseconds of each query, by the number of rows in both tables."""
    await apply_schemas(pool, [ledger.SQL["schema"], SCHEMA])
    times, filled = {}, 0
    with Progress(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("rows", total=max(rows))
        for count in sorted(rows):
            for first in range(filled + 1, count + 1, FILL_BATCH):
                last = min(first + FILL_BATCH - 1, count)
                for statement in (INSERT_JOBS, INSERT_DEAD_LETTERS):
                    await pool.execute(statement, first, last, timeout=120)
                bar.update(task, completed=last)
            await pool.execute("vacuum analyze", timeout=600)
            filled = count
            times[count] = {name: await median_milliseconds(query) for name, query in list_queries(pool).items()}
    return times


def list_queries(pool: asyncpg.Pool) -> dict[str, Callable[[], Awaitable[Any]]]:
    """As a gateway's query runs them, without the broker."""
    dead_letters, unfiltered = DeadLetterRepository(pool), Selection()
    last_day = Selection(since=datetime.now(UTC) - timedelta(days=1))

    def jobs(**query: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: ledger.list_jobs(ListJobs(**query), operator_context(), database=pool)

    return {
        "jobs, first page": jobs(),
        "jobs of one state": jobs(state="failed"),
        "jobs of one tenant": jobs(tenant="tenant-7"),
        "jobs by words that few have": jobs(words="lantern 999"),
        "jobs by a word that a third has": jobs(words="moon"),
        "jobs by two words that one in a hundred has": jobs(words="moon river"),
        "jobs by two words that none has": jobs(words="night canvas"),
        "jobs by a word that none has, of triples that all have": jobs(words="cantern"),
        "jobs of one tenant, by the same word": jobs(tenant="tenant-7", words="cantern"),
        "a job stored with the longest text": lambda: store_long_job(pool),
        "dead letters, first page": lambda: dead_letters.find(unfiltered, 50),
        "dead letters of one state": lambda: dead_letters.find(Selection(state="resolved"), 50),
        "dead letters of one tenant": lambda: dead_letters.find(Selection(tenant="tenant-7"), 50),
        "dead letters, grouped": lambda: dead_letters.groups(unfiltered),
        "dead letters, grouped by the hour": lambda: dead_letters.groups(unfiltered, per="hour"),
        "dead letters of a day, grouped by the hour": lambda: dead_letters.groups(last_day, per="hour"),
    }


async def store_long_job(pool: asyncpg.Pool) -> None:
    """With the triples of its bytes, and without keeping it."""
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(STORE_LONG_JOB, ledger.MAX_SEARCH_TEXT_CHARS)
        await transaction.rollback()


def operator_context() -> Context:
    async def ignore(progress: OrderProgress) -> None:
        """A query reports none."""

    return Context(job_id="bench", message_id="bench", attempt=1, tenant=None, deadline=None, report_progress=ignore)


async def median_milliseconds(query: Callable[[], Awaitable[Any]]) -> float:
    """The median of a few runs after a first one that is not counted."""
    await query()
    durations = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        await query()
        durations.append(time.perf_counter() - began)
    return round(median(durations) * 1000, 2)


def summarize(times: Mapping[int, Milliseconds]) -> dict[str, Any]:
    """By query: `lists` with `ms_1k` for a thousand rows, and `growth`, the time with most rows over that with fewest."""
    fewest, most = times[min(times)], times[max(times)]
    lists = {name: {f"ms_{count / 1000:g}k": times[count][name] for count in sorted(times)} for name in most}
    growth = {name: round(most[name] / fewest[name], 2) for name in most}
    return {"lists": lists, "milliseconds": {str(count): values for count, values in times.items()}, "growth": growth}
