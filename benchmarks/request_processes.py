"""A client of the gateway benchmark in a process of its own: `python -m benchmarks.request_processes SIDE`.

It reads JSON lines: its `ClientConfig`, which has a password and so is no argument, then rounds. It prints the durations of each round.
"""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.request_clients import OPENERS, ClientConfig, SendRequest
from benchmarks.unpatched import require_unpatched_libraries

ROUND_TIMEOUT_SECONDS = 300.0
OUTPUT_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True)
class LoadRound:
    """In seconds: the duration of a round, of each of its requests, and the processor time of the process that sent them."""

    seconds: float
    request_seconds: Sequence[float]
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.request_seconds) / self.seconds


@dataclass(frozen=True)
class RequestProcess:
    """The parent's end of the process."""

    process: Process

    @property
    def pid(self) -> int:
        return self.process.pid

    async def run(self, step: str, body: dict[str, Any], *, seconds: float) -> LoadRound:
        """Every caller sends its next request as soon as it has the reply, for `seconds`."""
        return await self._measure({"step": step, "body": body, "seconds": seconds})

    async def run_once(self, step: str, body: dict[str, Any], *, within: float) -> LoadRound:
        """Every caller sends one request. Those that fail, or have no reply `within` seconds, are not in the result."""
        return await self._measure({"step": step, "body": body, "within": within})

    async def _measure(self, order: dict[str, Any]) -> LoadRound:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(ROUND_TIMEOUT_SECONDS):
            return LoadRound(**json.loads(await read_line(self.process)))


@asynccontextmanager
async def open_request_process(side: str, config: ClientConfig, environment: dict[str, str]) -> AsyncIterator[RequestProcess]:
    """The client of a side, once its connections are open."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.request_processes", side]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=PIPE, stdout=PIPE, limit=OUTPUT_LIMIT_BYTES)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(config)).encode() + b"\n")
        async with asyncio.timeout(60):
            await read_line(process)
        yield RequestProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def read_line(process: Process) -> bytes:
    assert process.stdout is not None
    if line := await process.stdout.readline():
        return line
    raise RuntimeError("the process of a client ended: see its output above")


async def main(side: str, config: ClientConfig) -> None:
    async with OPENERS[side](config) as callers:
        if side != "bus":
            require_unpatched_libraries()
        print_line({"ready": side})
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            print_line(asdict(await (run_once if "within" in order else run_repeatedly)(callers, **order)))


async def run_repeatedly(callers: Sequence[SendRequest], step: str, body: dict[str, Any], seconds: float) -> LoadRound:
    durations: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()

    async def send_repeatedly(request: SendRequest) -> None:
        while (sent := time.perf_counter()) < began + seconds:
            await request(step, body)
            durations.append(time.perf_counter() - sent)

    await asyncio.gather(*map(send_repeatedly, callers))
    return LoadRound(time.perf_counter() - began, durations, time.process_time() - cpu)


async def run_once(callers: Sequence[SendRequest], step: str, body: dict[str, Any], within: float) -> LoadRound:
    durations: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()

    async def send(request: SendRequest) -> None:
        await request(step, body)
        durations.append(time.perf_counter() - began)

    calls = [asyncio.create_task(send(request)) for request in callers]
    _, pending = await asyncio.wait(calls, timeout=within)
    seconds, replied = time.perf_counter() - began, [*durations]
    for call in pending:
        call.cancel()
    errors = [error for error in await asyncio.gather(*calls, return_exceptions=True) if isinstance(error, Exception)]
    if errors:
        sys.stderr.write(f"{len(errors)} requests failed, the first with {type(errors[0]).__name__}\n")
    return LoadRound(seconds, replied, time.process_time() - cpu)


def print_line(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], ClientConfig(**json.loads(sys.stdin.readline()))))
