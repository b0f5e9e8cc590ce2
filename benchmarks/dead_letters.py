"""`atelier bench dead-letters`: many dead letters taken in, grouped and sent again, on a private broker and database of its own.

Counts at the far end: every letter must come back to the queue that failed once, under its own id.
"""

import asyncio
import json
import sys
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
from bus.worker.worker import run_worker
from contracts import broker_names
from contracts.dead_letter import ReplayDeadLetters, Selection
from ops.local.stack import local_stack
from ops.settings import LocalSettings

STEP = "bench"
CAUSES = 10
POST_AT_ONCE = 500
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
    configure_logging("WARNING")
    figures = asyncio.run(measure(arguments.letters))
    told = asdict(figures)
    if arguments.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{name:>18}  {value:,}\n" for name, value in told.items()))
    return 0 if figures.lost == figures.duplicated == 0 else 1


async def measure(letters: int) -> DeadLetterFigures:
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=Path(folder))
        async with local_stack(parts) as stack:
            settings = BusSettings.model_validate({"amqp_url": stack.amqp_url, "database_url": stack.database_url})
            async with open_pool(settings) as pool, open_publisher(settings) as outbox:
                assert pool is not None
                return await run(letters, settings, StoreSettings(store_url=stack.store_url), pool, outbox)


async def run(letters: int, settings: BusSettings, store: StoreSettings, pool: asyncpg.Pool, outbox: Publisher) -> DeadLetterFigures:
    ids = await publish_dead_letters(letters, outbox)
    cabinet, everything = DeadLetterRepository(pool), Selection(step=STEP)
    intake = DeadLetterIngest("bench", (broker_names.dead_letter_queue(STEP),))

    started = time.perf_counter()
    async with run_worker((), (), settings, store, (intake,)):
        while await cabinet.count(everything) < letters:  # noqa: ASYNC110 nobody sets an event when a row is written
            await asyncio.sleep(POLL_SECONDS)
        ingest = time.perf_counter() - started

        started = time.perf_counter()
        groups = await cabinet.groups(everything)
        grouping = time.perf_counter() - started

        async with count_arrivals(letters, outbox) as (arrived, complete):
            started = time.perf_counter()
            await replay.stage(pool, ReplayDeadLetters(selection=everything, dry_run=False))
            with suppress(TimeoutError):
                await asyncio.wait_for(complete.wait(), 60 + letters / 20)
            sending = time.perf_counter() - started
            await asyncio.sleep(1)  # whatever came twice would come now

    return DeadLetterFigures(
        letters=letters,
        ingest_seconds=round(ingest, 3),
        ingest_per_second=round(letters / ingest, 1),
        groups=len(groups),
        group_seconds=round(grouping, 3),
        replay_seconds=round(sending, 3),
        replay_per_second=round(len(arrived) / sending, 1),
        lost=len(ids - set(arrived)),
        duplicated=sum(count - 1 for count in arrived.values()),
    )


async def publish_dead_letters(letters: int, outbox: Publisher) -> set[str]:
    """Bury letters as an actor does, of ten causes; returns their ids."""
    async with outbox.channel() as channel:
        await declare_exchanges(channel)
        await declare_dead_letter_queues(channel, broker_names.dead_letter_queue(STEP))
    graves = [dead_letter(number) for number in range(letters)]
    for first in range(0, letters, POST_AT_ONCE):
        await outbox.publish(*graves[first : first + POST_AT_ONCE])
    return {letter.message_id for letter in graves}


def dead_letter(number: int) -> OutboundMessage:
    body = json.dumps({"prompt": f"picture {number}", "steps": 20, "width": 512, "height": 512}).encode()
    delivery = Delivery(body, broker_names.work_queue(STEP), str(uuid4()), str(uuid4()), tenant=f"tenant-{number % 7}")
    cause = KeyError(f"key {number}")
    stack = f'Traceback\n  File "actors/bench.py", line {number}, in cause_{number % CAUSES}\n    step()\nKeyError: {number}'
    now = datetime.now(UTC) - timedelta(seconds=number % 3600)
    dead = DeadLettered(fault_from_error(cause, "attempts-exhausted", STEP, 4), stack)
    return build_dead_letter(StepRun(delivery, STEP, "bench", None, now), dead, now=now)[0]


@asynccontextmanager
async def count_arrivals(letters: int, outbox: Publisher) -> AsyncIterator[tuple[Counter[str], asyncio.Event]]:
    """The message ids that come to the queue that failed, and whether they are so many."""
    arrived: Counter[str] = Counter()
    complete = asyncio.Event()

    async def take(message: Any) -> None:
        arrived[message.message_id or ""] += 1
        if len(arrived) == letters:
            complete.set()

    async with outbox.channel() as channel:
        queue = await channel.declare_queue(broker_names.work_queue(STEP), durable=True, arguments={"x-queue-type": "quorum"})
        await queue.consume(take, no_ack=True)
        yield arrived, complete
