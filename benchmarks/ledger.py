"""`atelier bench ledger`: events stored per second, and how long lists and groups take with few rows and with many.

The database generates the rows; the queries are those of the ledger and of the dead-letter repository.
"""

import asyncio
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
from benchmarks.harness import print_figures, private_services
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import open_publisher
from bus.dead_letters import repository
from bus.dead_letters.repository import DeadLetterRepository
from bus.observability.logs import configure_logging
from bus.persistence.pool import apply_schemas, open_pool
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts import broker_names
from contracts.dead_letter import Selection
from contracts.event import Event, EventKind
from ops.local.stack import ServiceUrls

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
    print_figures(asyncio.run(measure(arguments)), as_json=arguments.json, format_text=format_text)
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        async with private_services(Path(folder)) as services:
            settings = BusSettings.model_validate({"amqp_url": services.amqp_url, "database_url": services.database_url})
            async with open_pool(settings) as pool:
                assert pool is not None
                ingest_rate = await measure_ingest(arguments.events, settings, services, pool)
                times = await measure_queries(arguments.rows, pool)
    smallest, largest = str(min(arguments.rows)), str(max(arguments.rows))
    growth = {name: round(times[largest][name] / times[smallest][name], 2) for name in times[largest]}
    return {"events_kept_per_second": round(ingest_rate, 1), "milliseconds": times, "growth": growth}


async def measure_ingest(count: int, settings: BusSettings, services: ServiceUrls, pool: asyncpg.Pool) -> float:
    """Events per second, from the first publish to the row of the last event."""
    store = StoreSettings(store_url=services.store_url)
    async with Worker(ledger.ACTORS, (), settings, store).run(), open_publisher(settings) as publisher:
        messages = [event_message(number) for number in range(count)]
        began = time.perf_counter()
        for first in range(0, count, PUBLISH_BATCH):
            await publisher.publish(*messages[first : first + PUBLISH_BATCH])
        while await pool.fetchval("select count(*) from atelier.job_events") < count:  # noqa: ASYNC110 # no event is set when a row is written
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
    """Milliseconds of each query, by the number of rows in both tables."""
    await apply_schemas(pool, [repository.SQL["schema"]])
    times, filled = {}, 0
    for count in sorted(rows):
        await pool.execute(INSERT_JOBS, filled + 1, count, timeout=120)
        await pool.execute(INSERT_DEAD_LETTERS, filled + 1, count, timeout=120)
        await pool.execute("analyze")
        filled = count
        times[str(count)] = {name: await median_milliseconds(query) for name, query in queries(pool).items()}
    return times


def queries(pool: asyncpg.Pool) -> dict[str, Callable[[], Awaitable[Any]]]:
    dead_letters, unfiltered = DeadLetterRepository(pool), Selection()
    jobs = ledger.SQL["jobs"]
    return {
        "jobs, first page": lambda: pool.fetch(jobs, None, None, None, 50, None),
        "jobs of one state": lambda: pool.fetch(jobs, "failed", None, None, 50, None),
        "jobs of one tenant": lambda: pool.fetch(jobs, None, "tenant-7", None, 50, None),
        "jobs by words that few have": lambda: pool.fetch(jobs, None, None, None, 50, "lantern 999"),
        "dead letters, first page": lambda: dead_letters.find(unfiltered, 50),
        "dead letters, grouped": lambda: dead_letters.groups(unfiltered),
        "dead letters, grouped by the hour": lambda: dead_letters.groups(unfiltered, per="hour"),
    }


async def median_milliseconds(query: Callable[[], Awaitable[Any]]) -> float:
    """The median of a few runs after a first one that is not counted."""
    await query()
    durations = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        await query()
        durations.append(time.perf_counter() - began)
    return round(median(durations) * 1000, 2)


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"events stored per second: {figures['events_kept_per_second']:,}"]
    for rows, times in figures["milliseconds"].items():
        lines += [f"{rows:>8} rows  {name:>36}  {milliseconds:>9} ms" for name, milliseconds in times.items()]
    return "\n".join(lines)
