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

from bus.database import open_database
from bus.letters import command_letter
from bus.logs import open_logs
from bus.outbox import Outbox, open_outbox
from bus.settings import BusSettings
from bus.topology import declare_exchanges, declare_step
from contracts import channels
from ops.bench.bus import place
from ops.bench.peers.ends import process
from ops.bench.peers.run import Run
from ops.bench.processes import child
from ops.demo import tiny_models
from ops.local.stack import Addresses, local_stack
from ops.settings import LocalSettings, inherited

SIDE, STEP = "bus_kept", "bench-bus-kept"
IN_FLIGHT = 64
POST_AT_ONCE = 500
ENOUGH = 20
"""So many times the messages that are counted wait for the actors whose number is varied."""
STILL_SECONDS = 2.0
DONE = "select count(*) from atelier.inbox where step = $1 and finished_at is not null"
PROCESSES = {
    "image_generation watermark upload webhook": "actors.ready",
    "ledger": "actors.ready",
    "dead-letters": "actors.ready",
    "image": "actors.ready",
    "gateway": "gateway.ready",
}


@dataclass(frozen=True)
class Yard:
    """Where the mass goes through."""

    addresses: Addresses
    outbox: Outbox
    pool: asyncpg.Pool

    async def drain(self, waiting: int, workers: int, counted: int) -> float:
        """Messages a second of the next `counted` ones, once every worker works. So many wait at the start."""
        await self.fill(waiting)
        async with AsyncExitStack() as stack:
            one = place(SIDE, IN_FLIGHT, self.addresses)
            await asyncio.gather(*(stack.enter_async_context(process(SIDE, "worker", one)) for _ in range(workers)))
            first, began = await self.past(1)
            last, ended = await self.past(first + counted)
        await self._empty()
        return (last - first) / (ended - began)

    async def fill(self, count: int) -> None:
        run = Run(uuid4().hex, "send", 0, 1000, IN_FLIGHT)
        async with self.outbox.channel() as channel:
            await declare_exchanges(channel)
            await declare_step(channel, STEP)
        for begun in range(0, count, POST_AT_ONCE):
            ids = [str(uuid4()) for _ in range(min(POST_AT_ONCE, count - begun))]
            await self.outbox.post(*(command_letter(STEP, run.body, message_id=name, job_id=name, headers={}) for name in ids))

    async def past(self, count: int) -> tuple[int, float]:
        while (done := await self.done()) < count:  # noqa: ASYNC110 # nobody sets an event for a row
            await asyncio.sleep(0.02)
        return done, time.perf_counter()

    async def done(self) -> int:
        try:
            return int(await self.pool.fetchval(DONE, STEP))
        except asyncpg.UndefinedTableError:  # the first worker makes the tables
            return 0

    async def _empty(self) -> None:
        async with self.outbox.channel() as channel:
            queue = await channel.get_queue(channels.work_queue(STEP), ensure=False)
            await queue.purge()
        await self.pool.execute("delete from atelier.inbox where step = $1", STEP)


def bench(arguments: Namespace) -> int:
    open_logs("ERROR")
    told = asyncio.run(measured(arguments))
    sys.stdout.write((json.dumps(told) if arguments.json else in_words(told)) + "\n")
    return 0


async def measured(arguments: Namespace) -> dict[str, Any]:
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        async with open_yard(folder) as yard:
            backlogs = {count: [] for count in arguments.backlogs}  # type: dict[int, list[float]]
            workers = {count: [] for count in arguments.actors}  # type: dict[int, list[float]]
            for _ in range(arguments.rounds):
                for count in backlogs:
                    backlogs[count].append(await yard.drain(count, 1, arguments.counted))
                for count in workers:
                    workers[count].append(await yard.drain(ENOUGH * arguments.counted, count, arguments.counted))
            made = await tiny_models(arguments.models or folder / "models")
            environment = inherited() | yard.addresses.environment | {"IMAGE_MODEL": str(made["tiny-sd"]), "IMAGE_LOCAL_CACHE": name}
            processes = {words: await started(words, word, environment) for words, word in PROCESSES.items()}
    return figures(backlogs, workers) | {"processes": processes, "gateway_import_seconds": imported("gateway.app")}


@asynccontextmanager
async def open_yard(folder: Path) -> AsyncIterator[Yard]:
    parts = LocalSettings(amqp_url=None, database_url=None, store_url=None, rabbitmq_host=None, local_folder=folder)
    async with local_stack(parts) as stack:
        settings = BusSettings.model_validate(
            {"amqp_url": stack.amqp_url, "database_url": stack.database_url, "publish_timeout_seconds": 120.0}
        )
        async with open_outbox(settings) as outbox, open_database(settings) as pool:
            assert pool is not None
            yield Yard(stack, outbox, pool)


async def started(words: str, ready: str, environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds until it takes deliveries or requests, and the memory that it and its children then hold."""
    began = time.perf_counter()
    command = ["gateway", "--port", "0"] if words == "gateway" else ["run", *words.split()]
    async with child(["ops.cli", *command], environment, ready) as one:
        seconds = time.perf_counter() - began
        return {"ready_seconds": round(seconds, 2), "memory_mb": round(await settled(one.process.pid) / 1e6, 1)}


async def settled(pid: int) -> int:
    """Bytes that a process and its children hold, once they take no more: a model is loaded after its actor is ready."""
    before, held = 0, memory(pid)
    while held > before * 1.01:
        await asyncio.sleep(STILL_SECONDS)
        before, held = held, memory(pid)
    return held


def memory(pid: int) -> int:
    family = [parent := psutil.Process(pid), *parent.children(recursive=True)]
    return int(sum(process.memory_info().rss for process in family))


def imported(module: str) -> float:
    """Seconds that Python takes to start and import it; the median of five."""
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        taken.append(time.perf_counter() - began)
    return round(median(taken), 3)


def figures(backlogs: Mapping[int, list[float]], workers: Mapping[int, list[float]]) -> dict[str, Any]:
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


def in_words(told: Mapping[str, Any]) -> str:
    lines = [
        f"{count:>8} waiting   {rate:>9} messages/s  {told['backlog_share'][count]:>7} of the least"
        for count, rate in told["by_backlog"].items()
    ]
    lines += [
        f"{count:>8} actors    {rate:>9} messages/s  {told['actors_speedup'][count]:>7} of one" for count, rate in told["by_actors"].items()
    ]
    lines += [f"{seen['ready_seconds']:>8} s to ready  {seen['memory_mb']:>7} MB  {words}" for words, seen in told["processes"].items()]
    return "\n".join([*lines, f"{told['gateway_import_seconds']:>8} s to import the gateway"])
