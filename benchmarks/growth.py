"""`atelier bench growth`: more actor processes, and a longer backlog.

The backlog consists of messages of 1 kB whose step does nothing, but has a row in the inbox as every step has.
"""

import asyncio
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg

from benchmarks.bus import peer_config
from benchmarks.harness import median_ratio, print_figures, private_services
from benchmarks.peers.peer_processes import start_peer_process
from benchmarks.peers.workload import Workload
from bus.amqp.messages import build_command
from bus.amqp.publisher import Publisher, open_publisher
from bus.amqp.topology import declare_exchanges, declare_step_queues
from bus.observability.logs import configure_logging
from bus.persistence.pool import open_pool
from bus.settings import BusSettings
from contracts import broker_names
from ops.local.stack import ServiceUrls

SIDE, STEP = "bus_kept", "bench-bus-kept"
PREFETCH = 64
PUBLISH_BATCH = 500
BACKLOG_FACTOR = 20
"""The backlog as a multiple of the counted messages, where the number of actors is varied."""
COUNT_DONE = "select count(*) from atelier.inbox where step = $1 and finished_at is not null"


@dataclass(frozen=True)
class BenchRig:
    """The private services, and what publishes to them and counts in the inbox."""

    services: ServiceUrls
    publisher: Publisher
    pool: asyncpg.Pool

    async def measure_throughput(self, backlog: int, workers: int, counted: int) -> float:
        """Messages per second over `counted` messages, from the first one done; `backlog` of them wait at the start."""
        await self.publish_backlog(backlog)
        async with AsyncExitStack() as stack:
            config = peer_config(SIDE, PREFETCH, self.services)
            await asyncio.gather(*(stack.enter_async_context(start_peer_process(SIDE, "worker", config)) for _ in range(workers)))
            first, began = await self.wait_until_done(1)
            last, ended = await self.wait_until_done(first + counted)
        await self._purge()
        return (last - first) / (ended - began)

    async def publish_backlog(self, count: int) -> None:
        workload = Workload(uuid4().hex, "send", 0, 1000, PREFETCH)
        async with self.publisher.channel() as channel:
            await declare_exchanges(channel)
            await declare_step_queues(channel, STEP)
        for first in range(0, count, PUBLISH_BATCH):
            ids = [str(uuid4()) for _ in range(min(PUBLISH_BATCH, count - first))]
            await self.publisher.publish(*(build_command(STEP, workload.body, message_id=id_, job_id=id_, headers={}) for id_ in ids))

    async def wait_until_done(self, count: int) -> tuple[int, float]:
        while (done := await self.count_done()) < count:  # noqa: ASYNC110 # no event is set when a row is written
            await asyncio.sleep(0.02)
        return done, time.perf_counter()

    async def count_done(self) -> int:
        try:
            return int(await self.pool.fetchval(COUNT_DONE, STEP))
        except asyncpg.UndefinedTableError:  # the first worker creates the tables
            return 0

    async def _purge(self) -> None:
        async with self.publisher.channel() as channel:
            queue = await channel.get_queue(broker_names.work_queue(STEP), ensure=False)
            await queue.purge()
        await self.pool.execute("delete from atelier.inbox where step = $1", STEP)


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    print_figures(asyncio.run(measure(arguments)), as_json=arguments.json, format_text=format_text)
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        async with open_bench_rig(Path(name)) as rig:
            backlogs = {count: [] for count in arguments.backlogs}  # type: dict[int, list[float]]
            workers = {count: [] for count in arguments.actors}  # type: dict[int, list[float]]
            for _ in range(arguments.rounds):
                for count in backlogs:
                    backlogs[count].append(await rig.measure_throughput(count, 1, arguments.counted))
                for count in workers:
                    workers[count].append(await rig.measure_throughput(BACKLOG_FACTOR * arguments.counted, count, arguments.counted))
    return summarize(backlogs, workers)


@asynccontextmanager
async def open_bench_rig(folder: Path) -> AsyncIterator[BenchRig]:
    async with private_services(folder) as services:
        settings = BusSettings.model_validate(
            {"amqp_url": services.amqp_url, "database_url": services.database_url, "publish_timeout_seconds": 120.0}
        )
        async with open_publisher(settings) as publisher, open_pool(settings) as pool:
            assert pool is not None
            yield BenchRig(services, publisher, pool)


def summarize(backlogs: Mapping[int, list[float]], workers: Mapping[int, list[float]]) -> dict[str, Any]:
    """Messages per second; shares are relative to the smallest backlog or number of actors in the same round."""

    def share(rates: Mapping[int, list[float]], count: int) -> float:
        return median_ratio(rates[count], rates[min(rates)])

    return {
        "by_backlog": {str(count): round(median(values), 1) for count, values in backlogs.items()},
        "backlog_share": {str(count): share(backlogs, count) for count in backlogs},
        "by_actors": {str(count): round(median(values), 1) for count, values in workers.items()},
        "actors_speedup": {str(count): share(workers, count) for count in workers},
    }


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [
        f"{count:>8} waiting   {rate:>9} messages/s  {figures['backlog_share'][count]:>7} of the least"
        for count, rate in figures["by_backlog"].items()
    ]
    lines += [
        f"{count:>8} actors    {rate:>9} messages/s  {figures['actors_speedup'][count]:>7} of one"
        for count, rate in figures["by_actors"].items()
    ]
    return "\n".join(lines)
