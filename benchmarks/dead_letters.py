"""`atelier bench dead-letters`: many dead letters ingested, grouped and replayed, on a private broker and database.

Arrivals are counted in the work queue: every message must come back to the queue in which it failed once, under its own id.
"""

import asyncio
import json
import time
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg

from benchmarks.harness import print_figures, private_services
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher, open_publisher
from bus.amqp.topology import declare_dead_letter_queues, declare_exchanges
from bus.dead_letters import replay
from bus.dead_letters.ingest import DeadLetterIngest
from bus.dead_letters.repository import DeadLetterRepository
from bus.delivery import Delivery
from bus.observability.logs import configure_logging
from bus.outcome import DeadLettered, fault_from_error
from bus.persistence.pool import open_pool
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.outgoing import StepRun, build_dead_letter
from bus.worker.worker import Worker
from contracts import broker_names
from contracts.dead_letter import ReplayDeadLetters, Selection

STEP = "bench"
CAUSES = 10
PUBLISH_BATCH = 500
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class DeadLetterFigures:
    letters: int
    ingest_seconds: float
    ingest_per_second: float
    groups: int
    group_seconds: float
    replay_seconds: float
    replay_per_second: float
    lost: int
    duplicated: int


def bench(arguments: Namespace) -> int:
    """Returns 1 when a message was lost or arrived twice."""
    configure_logging("WARNING")
    figures = asyncio.run(measure(arguments.letters))
    print_figures(asdict(figures), as_json=arguments.json)
    return 0 if figures.lost == figures.duplicated == 0 else 1


async def measure(letters: int) -> DeadLetterFigures:
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        async with private_services(Path(folder)) as services:
            settings = BusSettings.model_validate({"amqp_url": services.amqp_url, "database_url": services.database_url})
            async with open_pool(settings) as pool, open_publisher(settings) as publisher:
                assert pool is not None
                return await run(letters, settings, StoreSettings(store_url=services.store_url), pool, publisher)


async def run(letters: int, settings: BusSettings, store: StoreSettings, pool: asyncpg.Pool, publisher: Publisher) -> DeadLetterFigures:
    ids = await publish_dead_letters(letters, publisher)
    repository, all_of_step = DeadLetterRepository(pool), Selection(step=STEP)
    ingest = DeadLetterIngest("bench", (broker_names.dead_letter_queue(STEP),))

    started = time.perf_counter()
    async with Worker((), (), settings, store, (ingest,)).run():
        while await repository.count(all_of_step) < letters:  # noqa: ASYNC110 nobody sets an event when a row is written
            await asyncio.sleep(POLL_SECONDS)
        ingest_seconds = time.perf_counter() - started

        started = time.perf_counter()
        groups = await repository.groups(all_of_step)
        group_seconds = time.perf_counter() - started

        async with count_arrivals(letters, publisher) as (arrived, complete):
            started = time.perf_counter()
            await replay.stage(pool, ReplayDeadLetters(selection=all_of_step, dry_run=False))
            with suppress(TimeoutError):
                await asyncio.wait_for(complete.wait(), 60 + letters / 20)
            replay_seconds = time.perf_counter() - started
            await asyncio.sleep(1)  # a duplicate would arrive now

    return DeadLetterFigures(
        letters=letters,
        ingest_seconds=round(ingest_seconds, 3),
        ingest_per_second=round(letters / ingest_seconds, 1),
        groups=len(groups),
        group_seconds=round(group_seconds, 3),
        replay_seconds=round(replay_seconds, 3),
        replay_per_second=round(len(arrived) / replay_seconds, 1),
        lost=len(ids - set(arrived)),
        duplicated=sum(count - 1 for count in arrived.values()),
    )


async def publish_dead_letters(letters: int, publisher: Publisher) -> set[str]:
    """Publish dead letters as a worker does, of ten different causes; returns their message ids."""
    async with publisher.channel() as channel:
        await declare_exchanges(channel)
        await declare_dead_letter_queues(channel, broker_names.dead_letter_queue(STEP))
    messages = [dead_letter(number) for number in range(letters)]
    for first in range(0, letters, PUBLISH_BATCH):
        await publisher.publish(*messages[first : first + PUBLISH_BATCH])
    return {message.message_id for message in messages}


def dead_letter(number: int) -> OutboundMessage:
    body = json.dumps({"prompt": f"picture {number}", "steps": 20, "width": 512, "height": 512}).encode()
    delivery = Delivery(body, broker_names.work_queue(STEP), str(uuid4()), str(uuid4()), tenant=f"tenant-{number % 7}")
    cause = KeyError(f"key {number}")
    stack = f'Traceback\n  File "actors/bench.py", line {number}, in cause_{number % CAUSES}\n    step()\nKeyError: {number}'
    now = datetime.now(UTC) - timedelta(seconds=number % 3600)
    outcome = DeadLettered(fault_from_error(cause, "attempts-exhausted", STEP, 4), stack)
    return build_dead_letter(StepRun(delivery, STEP, "bench", None, now), outcome, now=now)[0]


@asynccontextmanager
async def count_arrivals(letters: int, publisher: Publisher) -> AsyncIterator[tuple[Counter[str], asyncio.Event]]:
    """How often each message id arrives in the work queue, and an event that is set when `letters` different ones have."""
    arrived: Counter[str] = Counter()
    complete = asyncio.Event()

    async def on_message(message: Any) -> None:
        arrived[message.message_id or ""] += 1
        if len(arrived) == letters:
            complete.set()

    async with publisher.channel() as channel:
        queue = await channel.declare_queue(broker_names.work_queue(STEP), durable=True, arguments={"x-queue-type": "quorum"})
        await queue.consume(on_message, no_ack=True)
        yield arrived, complete
