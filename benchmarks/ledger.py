"""`atelier bench ledger`: events stored per second, and how long lists and groups take with few rows and with many (`lists.py`)."""

import asyncio
import time
from argparse import Namespace
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg

from actors import ledger
from benchmarks.harness import print_figures, private_services
from benchmarks.lists import measure_lists, summarize
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import open_publisher
from bus.observability.logs import configure_logging
from bus.persistence.pool import open_pool
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts import broker_names
from contracts.event import Event, EventKind
from ops.local.stack import ServiceUrls

PUBLISH_BATCH = 500
BACKLOG_ROUNDS = 3
"""The median of them is `events_per_second`."""


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
                kept = await measure_ingest(arguments.events, settings, services, pool)
                backlogs = [await measure_backlog(arguments.events, settings, services, pool) for _ in range(BACKLOG_ROUNDS)]
                lists = summarize(await measure_lists(arguments.rows, pool))
    rates = {"events_per_second": round(median(backlogs), 1), "events_kept_per_second": round(kept, 1)}
    return {**rates, **lists}


async def measure_ingest(count: int, settings: BusSettings, services: ServiceUrls, pool: asyncpg.Pool) -> float:
    """Events per second, from the first publish to the row of the last event; this process publishes them beside the ledger."""
    store = StoreSettings(store_url=services.store_url)
    async with Worker(ledger.ACTORS, (), settings, store).run():
        stored = await count_events(pool)
        began = await publish_events(count, settings)
        await wait_for_events(pool, stored + count)
        return count / (time.perf_counter() - began)


async def measure_backlog(count: int, settings: BusSettings, services: ServiceUrls, pool: asyncpg.Pool) -> float:
    """Events per second of a ledger that finds them all in its queue, from before its first row to the last."""
    stored = await count_events(pool)
    await publish_events(count, settings)
    first = asyncio.create_task(wait_for_events(pool, stored + 1))
    async with Worker(ledger.ACTORS, (), settings, StoreSettings(store_url=services.store_url)).run():
        began = await first
        await wait_for_events(pool, stored + count)
        return count / (time.perf_counter() - began)


async def publish_events(count: int, settings: BusSettings) -> float:
    """Returns when the first was published."""
    async with open_publisher(settings) as publisher:
        prefix = uuid4().hex
        messages = [event_message(f"{prefix}-{number // 3}", number) for number in range(count)]
        began = time.perf_counter()
        for first in range(0, count, PUBLISH_BATCH):
            await publisher.publish(*messages[first : first + PUBLISH_BATCH])
    return began


async def wait_for_events(pool: asyncpg.Pool, rows: int) -> float:
    """Wait until so many events are stored; returns when there were fewer for the last time."""
    fewer = time.perf_counter()
    while await count_events(pool) < rows:
        fewer = time.perf_counter()
        await asyncio.sleep(0.02)
    return fewer


async def count_events(pool: asyncpg.Pool) -> int:
    return int(await pool.fetchval("select count(*) from atelier.job_events"))


def event_message(job_id: str, number: int) -> OutboundMessage:
    """Three events a job."""
    event = Event(
        kind=EventKind.COMPLETED, step=("image", "upload", "job")[number % 3], job_id=job_id, at=datetime.now(UTC), message_id=str(number)
    )
    key = broker_names.event_routing_key(event.step, event.kind, job_id)
    return OutboundMessage(
        broker_names.EVENTS_EXCHANGE, key, event.model_dump_json(exclude_none=True).encode(), str(uuid4()), job_id, "event.v1"
    )


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [f"events stored per second: {figures['events_per_second']:,}; published meanwhile: {figures['events_kept_per_second']:,}"]
    for rows, times in figures["milliseconds"].items():
        lines += [f"{rows:>8} rows  {name:>36}  {milliseconds:>9} ms" for name, milliseconds in times.items()]
    return "\n".join(lines)
