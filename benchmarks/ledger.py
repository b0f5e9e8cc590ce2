"""`atelier bench ledger`: events kept a second, and how long lists and groups take with few rows and with many.

The rows are made by the database itself; the questions are the very ones that the ledger and the dead letters ask.
"""

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg

from actors import ledger
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import open_publisher
from bus.dead_letters import repository
from bus.dead_letters.repository import DeadLetterRepository
from bus.observability.logs import configure_logging
from bus.persistence.pool import apply_schemas, open_pool
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import run_worker
from contracts import broker_names
from contracts.dead_letter import Selection
from contracts.event import Event, EventKind
from ops.local.stack import ServiceUrls, local_stack
from ops.settings import LocalSettings

PUBLISH_BATCH = 500
REPETITIONS = 9
INSERT_JOBS = """
insert into atelier.jobs (job_id, kind, state, tenant, created_at, updated_at, words)
select 'filled-' || n, 'image_order', (array['running', 'completed', 'failed'])[1 + n % 3], 'tenant-' || n % 50,
    now() - n * interval '1 second', now(), 'a harbour at night, oil on canvas, lantern ' || n
from generate_series($1::integer, $2::integer) n
"""
INSERT_DEAD_LETTERS = """
insert into atelier.dead_letters (id, dead_queue, step, message_id, sent_as, job_id, tenant, group_id, code, message, stack, shape,
    attempts, headers, body, size, state, first_failed_at, last_failed_at)
select 'filled-' || n, 'atelier.dead.image', 'image', 'm-' || n, 'm-' || n, 'j-' || n, 'tenant-' || n % 50, 'group-' || n % 40,
    'engine-crash', 'the device was lost', 'a stack', '[]', 3, '{}', '{"prompt": "a fox"}', 19,
    (array['unresolved', 'resolved'])[1 + n % 2], now() - n * interval '1 second', now() - n * interval '1 second'
from generate_series($1::integer, $2::integer) n
"""


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    told = asyncio.run(measure(arguments))
    sys.stdout.write((json.dumps(told) if arguments.json else format_text(told)) + "\n")
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=Path(folder))
        async with local_stack(parts) as stack:
            settings = BusSettings.model_validate({"amqp_url": stack.amqp_url, "database_url": stack.database_url})
            async with open_pool(settings) as pool:
                assert pool is not None
                kept = await measure_ingest(arguments.events, settings, stack, pool)
                times = await measure_queries(arguments.rows, pool)
    least, most = str(min(arguments.rows)), str(max(arguments.rows))
    growth = {name: round(times[most][name] / times[least][name], 2) for name in times[most]}
    return {"events_kept_per_second": round(kept, 1), "milliseconds": times, "growth": growth}


async def measure_ingest(count: int, settings: BusSettings, stack: ServiceUrls, pool: asyncpg.Pool) -> float:
    """Events a second, from the first one posted to the last one's row."""
    async with run_worker(ledger.ACTORS, (), settings, StoreSettings(store_url=stack.store_url)), open_publisher(settings) as outbox:
        letters = [event_message(number) for number in range(count)]
        began = time.perf_counter()
        for first in range(0, count, PUBLISH_BATCH):
            await outbox.publish(*letters[first : first + PUBLISH_BATCH])
        while await pool.fetchval("select count(*) from atelier.job_events") < count:  # noqa: ASYNC110 # nobody sets an event for a row
            await asyncio.sleep(0.02)
        return count / (time.perf_counter() - began)


def event_message(number: int) -> OutboundMessage:
    """Three events a job."""
    job_id = f"job-{number // 3}"
    event = Event(
        kind=EventKind.COMPLETED, step=("image", "upload", "job")[number % 3], job_id=job_id, at=datetime.now(UTC), message_id=str(number)
    )
    key = broker_names.event_routing_key(event.step, event.kind, job_id)
    return OutboundMessage(
        broker_names.EVENTS_EXCHANGE, key, event.model_dump_json(exclude_none=True).encode(), str(uuid4()), job_id, "event.v1"
    )


async def measure_queries(rows: list[int], pool: asyncpg.Pool) -> dict[str, dict[str, float]]:
    """Milliseconds of each question with so many rows in both tables."""
    await apply_schemas(pool, [repository.SQL["schema"]])
    times, filled = {}, 0
    for count in sorted(rows):
        await pool.execute(INSERT_JOBS, filled + 1, count, timeout=120)
        await pool.execute(INSERT_DEAD_LETTERS, filled + 1, count, timeout=120)
        await pool.execute("analyze")
        filled = count
        times[str(count)] = {name: await median_milliseconds(ask) for name, ask in queries(pool).items()}
    return times


def queries(pool: asyncpg.Pool) -> dict[str, Callable[[], Awaitable[Any]]]:
    letters, everything = DeadLetterRepository(pool), Selection()
    jobs = ledger.SQL["jobs"]
    return {
        "jobs, first page": lambda: pool.fetch(jobs, None, None, None, 50, None),
        "jobs of one state": lambda: pool.fetch(jobs, "failed", None, None, 50, None),
        "jobs of one tenant": lambda: pool.fetch(jobs, None, "tenant-7", None, 50, None),
        "jobs by words that few have": lambda: pool.fetch(jobs, None, None, None, 50, "lantern 999"),
        "dead letters, first page": lambda: letters.find(everything, 50),
        "dead letters, grouped": lambda: letters.groups(everything),
        "dead letters, grouped by the hour": lambda: letters.groups(everything, per="hour"),
    }


async def median_milliseconds(query: Callable[[], Awaitable[Any]]) -> float:
    """The median of a few, the first one aside."""
    await query()
    taken = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        await query()
        taken.append(time.perf_counter() - began)
    return round(median(taken) * 1000, 2)


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"events kept a second: {figures['events_kept_per_second']:,}"]
    for rows, times in figures["milliseconds"].items():
        lines += [f"{rows:>8} rows  {name:>36}  {taken:>9} ms" for name, taken in times.items()]
    return "\n".join(lines)
