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

from bus.logs import open_logs
from ops.bench.bus import place
from ops.bench.growth import IN_FLIGHT, SIDE, Yard, open_yard
from ops.bench.peers.ends import process
from ops.errors import SetupError

SAMPLE_SECONDS = 0.25


@dataclass
class Scales:
    """The most memory that each process was seen to hold, in bytes."""

    folder: Path
    most: dict[str, int] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)

    async def weigh(self) -> None:
        while True:
            for name, one in self.watched().items():
                with suppress(psutil.NoSuchProcess):
                    held = one.memory_info().rss
                    self.most[name] = max(held, self.most.get(name, 0))
                    self.least.setdefault(name, held)
            await asyncio.sleep(SAMPLE_SECONDS)

    def watched(self) -> dict[str, psutil.Process]:
        own = psutil.Process()
        found = {"publisher": own}
        with suppress(psutil.NoSuchProcess):
            found |= dict(zip(["actor"], (one for one in own.children() if "ops.bench" in " ".join(one.cmdline())), strict=False))
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            found["broker"] = psutil.Process(json.loads(next(self.folder.rglob("rabbitmq/node.json")).read_text())["pid"])
        return found

    def figures(self) -> dict[str, dict[str, float]]:
        return {name: {"first_mb": round(self.least[name] / 1e6, 1), "most_mb": round(most / 1e6, 1)} for name, most in self.most.items()}


def bench(arguments: Namespace) -> int:
    open_logs("ERROR")
    told = asyncio.run(measured(arguments.orders))
    sys.stdout.write((json.dumps(told) if arguments.json else in_words(told)) + "\n")
    return 0 if not told["dropped"] else 1


async def measured(orders: int) -> dict[str, Any]:
    """The actor is up before the burst, so that it has the whole of it before it."""
    with TemporaryDirectory(prefix="atelier-bench-") as name:
        async with open_yard(Path(name)) as yard:
            await yard.fill(1)
            async with process(SIDE, "worker", place(SIDE, IN_FLIGHT, yard.addresses)):
                await yard.past(1)
                scales = Scales(Path(name))
                weighing = asyncio.create_task(scales.weigh())
                try:
                    return await burst(yard, orders) | {"memory": scales.figures()}
                finally:
                    weighing.cancel()


async def burst(yard: Yard, orders: int) -> dict[str, Any]:
    began = time.perf_counter()
    await yard.fill(orders)
    taken = time.perf_counter()
    done, ended = await finished(yard, orders + 1)
    return {
        "orders": orders,
        "dropped": orders + 1 - done,
        "published_per_second": round(orders / (taken - began), 1),
        "done_per_second": round(orders / (ended - began), 1),
        "seconds": round(ended - began, 1),
    }


async def finished(yard: Yard, count: int, patience_seconds: float = 60.0) -> tuple[int, float]:
    """How many are done in the end. It is over when all are, or when none was for a while."""
    done, ended = 0, time.perf_counter()
    while done < count and time.perf_counter() - ended < patience_seconds:
        if (now := await yard.done()) > done:
            done, ended = now, time.perf_counter()
        await asyncio.sleep(SAMPLE_SECONDS)
    if not done:
        raise SetupError("The actor of the bench did nothing: run the bench again with nothing else on the machine.")
    return done, ended


def in_words(told: dict[str, Any]) -> str:
    lines = [
        f"{told['orders']} orders: published {told['published_per_second']}/s, done {told['done_per_second']}/s in {told['seconds']} s",
        f"{told['dropped']} dropped",
        *(f"{name}: {held['first_mb']} MB at first, {held['most_mb']} MB at most" for name, held in told["memory"].items()),
    ]
    return "\n".join(lines)
