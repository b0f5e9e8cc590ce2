"""The two processes of a peer, sender and worker, and the throughput between them."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import psutil

from benchmarks.peers.workload import PeerConfig
from ops.settings import inherited_environment

RUN_TIMEOUT_SECONDS = 120.0

CLOCK_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
"""The resolution of another process's processor time: a short run may seem to have taken none."""

Process = asyncio.subprocess.Process


@dataclass(frozen=True)
class Throughput:
    """Messages per second of wall-clock time, and the microseconds of processor time of both processes for each."""

    messages_per_second: float
    cpu_microseconds: float


@dataclass(frozen=True)
class PeerProcesses:
    sender: Process
    worker: Process

    async def measure(self, mode: str, count: int, size: int, in_flight: int) -> Throughput:
        """From the first publish to the end of the last message's work, or to the last reply."""
        before = self._cpu_seconds()
        times = await self._run({"name": uuid4().hex, "mode": mode, "count": count, "size": size, "in_flight": in_flight})
        cpu_seconds = max(CLOCK_TICK_SECONDS, self._cpu_seconds() - before)
        return Throughput(count / (times["ended"] - times["began"]), cpu_seconds / count * 1e6)

    async def _run(self, run: dict[str, str | int]) -> dict[str, float]:
        assert self.sender.stdin is not None
        self.sender.stdin.write(json.dumps(run).encode() + b"\n")
        async with asyncio.timeout(RUN_TIMEOUT_SECONDS):
            times: dict[str, float] = json.loads(await read_line(self.sender))
            if run["mode"] == "send":
                times["ended"] = float(await read_line(self.worker))
        return times

    def _cpu_seconds(self) -> float:
        return sum(sum(psutil.Process(process.pid).cpu_times()[:2]) for process in (self.sender, self.worker))


@asynccontextmanager
async def open_peer(name: str, config: PeerConfig) -> AsyncIterator[PeerProcesses]:
    async with start_peer_process(name, "worker", config) as worker, start_peer_process(name, "sender", config) as sender:
        yield PeerProcesses(sender, worker)


@asynccontextmanager
async def start_peer_process(name: str, role: str, config: PeerConfig) -> AsyncIterator[Process]:
    """The sender or the worker of a peer, once it is ready."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers", name, role]
    child = await asyncio.create_subprocess_exec(*command, env=inherited_environment(), stdin=pipe, stdout=pipe, limit=1 << 20)
    try:
        assert child.stdin is not None
        child.stdin.write(json.dumps(vars(config)).encode() + b"\n")
        async with asyncio.timeout(60):
            while await read_line(child) != "ready":
                pass
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def read_line(child: Process) -> str:
    assert child.stdout is not None
    line = await child.stdout.readline()
    if not line:
        raise RuntimeError("a peer's process ended: see its output above")
    return line.decode().strip()
