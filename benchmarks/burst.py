"""`atelier bench burst`: fifty thousand orders at once, faster than one actor can do them: nothing is dropped, and no process grows.

What waits, waits in the broker: an actor holds no more than its prefetch. Each message is kept in the inbox, as every step's is.
"""

import asyncio
import json
import sys
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.bus import peer_config
from benchmarks.growth import PREFETCH, SIDE, BenchRig, open_bench_rig
from benchmarks.peers.peer_processes import start_peer_process
from bus.observability.logs import configure_logging
from ops.errors import SetupError

SAMPLE_SECONDS = 0.25


@dataclass
class MemorySampler:
    """The most memory that each process was seen to hold, in bytes."""

    folder: Path
    peak_bytes: dict[str, int] = field(default_factory=dict)
    first_bytes: dict[str, int] = field(default_factory=dict)

    async def sample(self) -> None:
        while True:
            for name, one in self.processes().items():
                with suppress(psutil.NoSuchProcess):
                    held = one.memory_info().rss
                    self.peak_bytes[name] = max(held, self.peak_bytes.get(name, 0))
                    self.first_bytes.setdefault(name, held)
            await asyncio.sleep(SAMPLE_SECONDS)

    def processes(self) -> dict[str, psutil.Process]:
        own = psutil.Process()
        found = {"publisher": own}
        with suppress(psutil.NoSuchProcess):
            found |= dict(zip(["actor"], (one for one in own.children() if "benchmarks" in " ".join(one.cmdline())), strict=False))
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            found["broker"] = psutil.Process(json.loads(next(self.folder.rglob("rabbitmq/node.json")).read_text())["pid"])
        return found

    def summarize(self) -> dict[str, dict[str, float]]:
        return {
            name: {"first_mb": round(self.first_bytes[name] / 1e6, 1), "most_mb": round(most / 1e6, 1)}
            for name, most in self.peak_bytes.items()
        }


def bench(arguments: Namespace) -> int:
    configure_logging("ERROR")
    told = asyncio.run(measure(arguments.orders))
    sys.stdout.write((json.dumps(told) if arguments.json else format_text(told)) + "\n")
    return 0 if not told["dropped"] else 1


async def measure(orders: int) -> dict[str, Any]:
    """The actor is up before the burst, so that it has the whole of it before it."""
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        async with open_bench_rig(Path(name)) as yard:
            await yard.publish_backlog(1)
            async with start_peer_process(SIDE, "worker", peer_config(SIDE, PREFETCH, yard.addresses)):
                await yard.wait_until_done(1)
                scales = MemorySampler(Path(name))
                weighing = asyncio.create_task(scales.sample())
                try:
                    return await run_burst(yard, orders) | {"memory": scales.summarize()}
                finally:
                    weighing.cancel()


async def run_burst(rig: BenchRig, orders: int) -> dict[str, Any]:
    began = time.perf_counter()
    await rig.publish_backlog(orders)
    taken = time.perf_counter()
    done, ended = await wait_until_finished(rig, orders + 1)
    return {
        "orders": orders,
        "dropped": orders + 1 - done,
        "published_per_second": round(orders / (taken - began), 1),
        "done_per_second": round(orders / (ended - began), 1),
        "seconds": round(ended - began, 1),
    }


async def wait_until_finished(rig: BenchRig, count: int, stall_seconds: float = 60.0) -> tuple[int, float]:
    """How many are done in the end. It is over when all are, or when none was for a while."""
    done, ended = 0, time.perf_counter()
    while done < count and time.perf_counter() - ended < stall_seconds:
        if (now := await rig.count_done()) > done:
            done, ended = now, time.perf_counter()
        await asyncio.sleep(SAMPLE_SECONDS)
    if not done:
        raise SetupError("The actor of the bench did nothing: run the bench again with nothing else on the machine.")
    return done, ended


def format_text(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['orders']} orders: published {figures['published_per_second']}/s, done {figures['done_per_second']}/s in {figures['seconds']} s",
        f"{figures['dropped']} dropped",
        *(f"{name}: {held['first_mb']} MB at first, {held['most_mb']} MB at most" for name, held in figures["memory"].items()),
    ]
    return "\n".join(lines)
