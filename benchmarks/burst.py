"""`atelier bench burst`: fifty thousand orders at once, faster than one actor can process them: none is dropped, and no process grows.

The backlog waits in the broker: an actor holds no more messages than its prefetch. Each message has a row in the inbox, as in production.
"""

import asyncio
import json
import time
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.bus import peer_config
from benchmarks.growth import PREFETCH, SIDE, BenchRig, open_bench_rig
from benchmarks.harness import print_figures
from benchmarks.peers.peer_processes import start_peer_process
from bus.observability.logs import configure_logging
from ops.errors import SetupError

SAMPLE_SECONDS = 0.25


@dataclass
class MemorySampler:
    """The first and the highest resident memory of each process, in bytes."""

    folder: Path
    peak_bytes: dict[str, int] = field(default_factory=dict)
    first_bytes: dict[str, int] = field(default_factory=dict)

    async def sample(self) -> None:
        while True:
            for name, process in self.processes().items():
                with suppress(psutil.NoSuchProcess):
                    resident = process.memory_info().rss
                    self.peak_bytes[name] = max(resident, self.peak_bytes.get(name, 0))
                    self.first_bytes.setdefault(name, resident)
            await asyncio.sleep(SAMPLE_SECONDS)

    def processes(self) -> dict[str, psutil.Process]:
        own = psutil.Process()
        processes = {"publisher": own}
        with suppress(psutil.NoSuchProcess):
            workers = (child for child in own.children() if "benchmarks" in " ".join(child.cmdline()))
            processes |= dict(zip(["actor"], workers, strict=False))
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            processes["broker"] = psutil.Process(json.loads(next(self.folder.rglob("rabbitmq/node.json")).read_text())["pid"])
        return processes

    def summarize(self) -> dict[str, dict[str, float]]:
        return {
            name: {"first_mb": round(self.first_bytes[name] / 1e6, 1), "most_mb": round(peak / 1e6, 1)}
            for name, peak in self.peak_bytes.items()
        }


def bench(arguments: Namespace) -> int:
    """Returns 1 when a message was dropped."""
    configure_logging("ERROR")
    figures = asyncio.run(measure(arguments.orders))
    print_figures(figures, as_json=arguments.json, format_text=format_text)
    return 0 if not figures["dropped"] else 1


async def measure(orders: int) -> dict[str, Any]:
    """The actor is up before the burst begins, so that it meets all of it."""
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        async with open_bench_rig(Path(folder)) as rig:
            await rig.publish_backlog(1)
            async with start_peer_process(SIDE, "worker", peer_config(SIDE, PREFETCH, rig.services)):
                await rig.wait_until_done(1)
                sampler = MemorySampler(Path(folder))
                sampling = asyncio.create_task(sampler.sample())
                try:
                    return await run_burst(rig, orders) | {"memory": sampler.summarize()}
                finally:
                    sampling.cancel()


async def run_burst(rig: BenchRig, orders: int) -> dict[str, Any]:
    began = time.perf_counter()
    await rig.publish_backlog(orders)
    published = time.perf_counter()
    done, ended = await wait_until_finished(rig, orders + 1)
    return {
        "orders": orders,
        "dropped": orders + 1 - done,
        "published_per_second": round(orders / (published - began), 1),
        "done_per_second": round(orders / (ended - began), 1),
        "seconds": round(ended - began, 1),
    }


async def wait_until_finished(rig: BenchRig, count: int, stall_seconds: float = 60.0) -> tuple[int, float]:
    """How many messages are done in the end, and when the last one was. Ends when all are done, or none was for `stall_seconds`."""
    done, ended = 0, time.perf_counter()
    while done < count and time.perf_counter() - ended < stall_seconds:
        if (now := await rig.count_done()) > done:
            done, ended = now, time.perf_counter()
        await asyncio.sleep(SAMPLE_SECONDS)
    if not done:
        raise SetupError("The benchmark's actor did nothing: run it again with nothing else on the machine.")
    return done, ended


def format_text(figures: Mapping[str, Any]) -> str:
    lines = [
        f"{figures['orders']} orders: published {figures['published_per_second']}/s, "
        f"done {figures['done_per_second']}/s in {figures['seconds']} s",
        f"{figures['dropped']} dropped",
        *(f"{name}: {memory['first_mb']} MB at first, {memory['most_mb']} MB at most" for name, memory in figures["memory"].items()),
    ]
    return "\n".join(lines)
