"""The two processes of a side, what sends and what works, and how fast messages pass between them."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import psutil

from ops.bench.peers.run import Place
from ops.settings import inherited

LONGEST_RUN_SECONDS = 120.0

CLOCK_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
"""The kernel counts the processor time of another process in steps of this: a short run may seem to have taken none."""

Process = asyncio.subprocess.Process


@dataclass(frozen=True)
class Speed:
    """Messages a second of the wall, and the microseconds of processor time that both processes took for one."""

    rate: float
    cpu_us: float


@dataclass(frozen=True)
class Ends:
    sender: Process
    worker: Process

    async def speed(self, mode: str, count: int, size: int, in_flight: int) -> Speed:
        """From the first publish to the end of the last one's work, or to the last reply."""
        before = self._cpu_seconds()
        times = await self._run({"name": uuid4().hex, "mode": mode, "count": count, "size": size, "in_flight": in_flight})
        spent = max(CLOCK_TICK_SECONDS, self._cpu_seconds() - before)
        return Speed(count / (times["ended"] - times["began"]), spent / count * 1e6)

    async def _run(self, run: dict[str, str | int]) -> dict[str, float]:
        assert self.sender.stdin is not None
        self.sender.stdin.write(json.dumps(run).encode() + b"\n")
        async with asyncio.timeout(LONGEST_RUN_SECONDS):
            times: dict[str, float] = json.loads(await line(self.sender))
            if run["mode"] == "send":
                times["ended"] = float(await line(self.worker))
        return times

    def _cpu_seconds(self) -> float:
        return sum(sum(psutil.Process(end.pid).cpu_times()[:2]) for end in (self.sender, self.worker))


@asynccontextmanager
async def opened(name: str, place: Place) -> AsyncIterator[Ends]:
    async with process(name, "worker", place) as worker, process(name, "sender", place) as sender:
        yield Ends(sender, worker)


@asynccontextmanager
async def process(name: str, end: str, place: Place) -> AsyncIterator[Process]:
    """One end of a side, once it is ready."""
    pipe = asyncio.subprocess.PIPE
    words = [sys.executable, "-W", "ignore", "-m", "ops.bench.peers", name, end, json.dumps(vars(place))]
    child = await asyncio.create_subprocess_exec(*words, env=inherited(), stdin=pipe, stdout=pipe, limit=1 << 20)
    try:
        async with asyncio.timeout(60):
            while await line(child) != "ready":
                pass
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def line(child: Process) -> str:
    assert child.stdout is not None
    said = await child.stdout.readline()
    if not said:
        raise RuntimeError("a peer's process ended: what it printed above says why")
    return said.decode().strip()
