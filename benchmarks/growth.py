"""`atelier bench growth`: more actor processes, more messages waiting, and what each process takes to start and to live.

The mass is made of messages of 1 kB whose step does nothing but is kept in the inbox, as every step is.
"""

import asyncio
import json
import subprocess
import sys
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
import psutil

from benchmarks.bus import peer_config
from benchmarks.peers.peer_processes import start_peer_process
from benchmarks.peers.workload import Workload
from benchmarks.processes import start_process
from bus.amqp.messages import build_command
from bus.amqp.publisher import Publisher, open_publisher
from bus.amqp.topology import declare_exchanges, declare_step_queues
from bus.observability.logs import configure_logging
from bus.persistence.pool import open_pool
from bus.settings import BusSettings
from contracts import broker_names
from ops.commands.demo import make_tiny_models_in_subprocess
from ops.local.stack import ServiceUrls, local_stack
from ops.settings import LocalSettings, inherited_environment

SIDE, STEP = "bus_kept", "bench-bus-kept"
PREFETCH = 64
PUBLISH_BATCH = 500
BACKLOG_FACTOR = 20
"""So many times the messages that are counted wait for the actors whose number is varied."""
SETTLE_SECONDS = 2.0
COUNT_DONE = "select count(*) from atelier.inbox where step = $1 and finished_at is not null"
PROCESSES = {
    "image_generation watermark upload webhook": "actors.ready",
    "ledger": "actors.ready",
    "dead-letters": "actors.ready",
    "image": "actors.ready",
    "gateway": "gateway.ready",
}


@dataclass(frozen=True)
class BenchRig:
    """Where the mass goes through."""

    addresses: ServiceUrls
    publisher: Publisher
    pool: asyncpg.Pool

    async def measure_throughput(self, backlog: int, workers: int, counted: int) -> float:
        """Messages a second of the next `counted` ones, once every worker works. So many wait at the start."""
        await self.publish_backlog(backlog)
        async with AsyncExitStack() as stack:
            one = peer_config(SIDE, PREFETCH, self.addresses)
            await asyncio.gather(*(stack.enter_async_context(start_peer_process(SIDE, "worker", one)) for _ in range(workers)))
            first, began = await self.wait_until_done(1)
            last, ended = await self.wait_until_done(first + counted)
        await self._purge()
        return (last - first) / (ended - began)

    async def publish_backlog(self, count: int) -> None:
        run = Workload(uuid4().hex, "send", 0, 1000, PREFETCH)
        async with self.publisher.channel() as channel:
            await declare_exchanges(channel)
            await declare_step_queues(channel, STEP)
        for begun in range(0, count, PUBLISH_BATCH):
            ids = [str(uuid4()) for _ in range(min(PUBLISH_BATCH, count - begun))]
            await self.publisher.publish(*(build_command(STEP, run.body, message_id=name, job_id=name, headers={}) for name in ids))

    async def wait_until_done(self, count: int) -> tuple[int, float]:
        while (done := await self.count_done()) < count:  # noqa: ASYNC110 # nobody sets an event for a row
            await asyncio.sleep(0.02)
        return done, time.perf_counter()

    async def count_done(self) -> int:
        try:
            return int(await self.pool.fetchval(COUNT_DONE, STEP))
        except asyncpg.UndefinedTableError:  # the first worker makes the tables
            return 0

    async def _purge(self) -> None:
        async with self.publisher.channel() as channel:
            queue = await channel.get_queue(broker_names.work_queue(STEP), ensure=False)
            await queue.purge()
        await self.pool.execute("delete from atelier.inbox where step = $1", STEP)


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    told = asyncio.run(measure(arguments))
    sys.stdout.write((json.dumps(told) if arguments.json else format_text(told)) + "\n")
    return 0


async def measure(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        async with open_bench_rig(folder) as yard:
            backlogs = {count: [] for count in arguments.backlogs}  # type: dict[int, list[float]]
            workers = {count: [] for count in arguments.actors}  # type: dict[int, list[float]]
            for _ in range(arguments.rounds):
                for count in backlogs:
                    backlogs[count].append(await yard.measure_throughput(count, 1, arguments.counted))
                for count in workers:
                    workers[count].append(await yard.measure_throughput(BACKLOG_FACTOR * arguments.counted, count, arguments.counted))
            made = await make_tiny_models_in_subprocess(arguments.models or folder / "models")
            environment = (
                inherited_environment() | yard.addresses.environment | {"IMAGE_MODEL": str(made["tiny-sd"]), "IMAGE_LOCAL_CACHE": name}
            )
            processes = {words: await measure_startup(words, word, environment) for words, word in PROCESSES.items()}
    return summarize(backlogs, workers) | {"processes": processes, "gateway_import_seconds": import_seconds("gateway.app")}


@asynccontextmanager
async def open_bench_rig(folder: Path) -> AsyncIterator[BenchRig]:
    parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=folder)
    async with local_stack(parts) as stack:
        settings = BusSettings.model_validate(
            {"amqp_url": stack.amqp_url, "database_url": stack.database_url, "publish_timeout_seconds": 120.0}
        )
        async with open_publisher(settings) as outbox, open_pool(settings) as pool:
            assert pool is not None
            yield BenchRig(stack, outbox, pool)


async def measure_startup(command: str, ready: str, environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds until it takes deliveries or requests, and the memory that it and its children then hold."""
    began = time.perf_counter()
    arguments = ["gateway", "--port", "0"] if command == "gateway" else ["run", *command.split()]
    async with start_process(["ops.cli", *arguments], environment, ready) as one:
        seconds = time.perf_counter() - began
        return {"ready_seconds": round(seconds, 2), "memory_mb": round(await settled_memory(one.process.pid) / 1e6, 1)}


async def settled_memory(pid: int) -> int:
    """Bytes that a process and its children hold, once they take no more: a model is loaded after its actor is ready."""
    before, held = 0, tree_memory(pid)
    while held > before * 1.01:
        await asyncio.sleep(SETTLE_SECONDS)
        before, held = held, tree_memory(pid)
    return held


def tree_memory(pid: int) -> int:
    family = [parent := psutil.Process(pid), *parent.children(recursive=True)]
    return int(sum(process.memory_info().rss for process in family))


def import_seconds(module: str) -> float:
    """Seconds that Python takes to start and import it; the median of five."""
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        taken.append(time.perf_counter() - began)
    return round(median(taken), 3)


def summarize(backlogs: Mapping[int, list[float]], workers: Mapping[int, list[float]]) -> dict[str, Any]:
    """Messages a second; shares are against the smallest of the same round."""

    def share(rates: Mapping[int, list[float]], count: int) -> float:
        least = min(rates)
        return round(median(a / b for a, b in zip(rates[count], rates[least], strict=True)), 3)

    return {
        "by_backlog": {str(count): round(median(seen), 1) for count, seen in backlogs.items()},
        "backlog_share": {str(count): share(backlogs, count) for count in backlogs},
        "by_actors": {str(count): round(median(seen), 1) for count, seen in workers.items()},
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
    lines += [f"{seen['ready_seconds']:>8} s to ready  {seen['memory_mb']:>7} MB  {words}" for words, seen in figures["processes"].items()]
    return "\n".join([*lines, f"{figures['gateway_import_seconds']:>8} s to import the gateway"])
