"""The requests of the executor benchmark, and three ways to schedule them: step batching, one by one, and static batches."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.engines.diffusion.checkpoint import file_sha256
from actors.engines.diffusion.requests import DiffusionRequest, LoraFile
from actors.engines.process.executor import Executor
from actors.engines.process.protocol import Progressed


@dataclass(frozen=True)
class Arrival:
    """A request and its arrival time, in seconds from the start."""

    at: float
    request: DiffusionRequest


@dataclass(frozen=True)
class ScheduleResult:
    """`seconds`: the whole schedule. `latencies`: each request's seconds from its arrival to its images."""

    seconds: float
    latencies: list[float]

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def mean_latency(self) -> float:
        return sum(self.latencies) / len(self.latencies)


def mixed_arrivals(models: dict[str, Path], *, count: int, gap_seconds: float, side: int, seed: int = 1) -> list[Arrival]:
    """Staggered arrivals with mixed steps, guidance and LoRAs."""
    rng = random.Random(seed)  # noqa: S311 - the same requests each time
    loras = [(), *((lora_file(models[f"tiny-lora-{name}"]),) for name in "abc")]
    return [
        Arrival(
            number * gap_seconds,
            DiffusionRequest(
                prompt=f"order {number}", seed=number, width=side, height=side, steps=rng.choice((15, 20, 30, 50)),
                guidance_scale=rng.choice((5.0, 7.5, 9.0)), loras=loras[number % 4],
            ),
        )
        for number in range(count)
    ]  # fmt: skip


def lora_file(file: Path, scale: float = 1.0) -> LoraFile:
    return LoraFile(file, file_sha256(file), scale, file.name)


async def run_step_batching(executor: Executor, arrivals: Sequence[Arrival]) -> ScheduleResult:
    """Each request is handed to the executor when it arrives, and joins the running batch at the next step."""

    async def run(arrival: Arrival, start: float) -> float:
        await asyncio.sleep(max(0.0, start + arrival.at - time.perf_counter()))
        await executor.run(arrival.request)
        return time.perf_counter() - start - arrival.at

    return await measure_schedule(lambda start: asyncio.gather(*(run(arrival, start) for arrival in arrivals)))


async def run_sequentially(executor: Executor, arrivals: Sequence[Arrival]) -> ScheduleResult:
    async def schedule(start: float) -> list[float]:
        latencies = []
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, start + arrival.at - time.perf_counter()))
            await executor.run(arrival.request)
            latencies.append(time.perf_counter() - start - arrival.at)
        return latencies

    return await measure_schedule(schedule)


async def run_static_batching(executor: Executor, arrivals: Sequence[Arrival], batch_size: int) -> ScheduleResult:
    """The requests that have arrived start together and end with the slowest. Unlike a stock batch it may mix steps and LoRAs."""

    async def schedule(start: float) -> list[float]:
        remaining, latencies = list(arrivals), []
        while remaining:
            await asyncio.sleep(max(0.0, start + remaining[0].at - time.perf_counter()))
            batch = [arrival for arrival in remaining if start + arrival.at <= time.perf_counter()][:batch_size]
            await asyncio.gather(*(executor.run(arrival.request) for arrival in batch))
            latencies += [time.perf_counter() - start - arrival.at for arrival in batch]
            remaining = remaining[len(batch) :]
        return latencies

    return await measure_schedule(schedule)


async def measure_schedule(schedule: Callable[[float], Awaitable[Any]]) -> ScheduleResult:
    start = time.perf_counter()
    latencies = list(await schedule(start))
    return ScheduleResult(time.perf_counter() - start, latencies)


async def measure_cancel_latency(executor: Executor, request: DiffusionRequest) -> float:
    """Fill the device, cancel one request, and wait for the first step of a queued one. Returns seconds."""
    generation_started, first_step = asyncio.Event(), asyncio.Event()
    endless = replace(request, steps=500, count=4)
    running = [asyncio.create_task(executor.run(endless, weight=5, on_progress=lambda _: generation_started.set())) for _ in range(2)]
    await generation_started.wait()

    def on_progress(event: Progressed) -> None:
        if event.step:
            first_step.set()

    queued = asyncio.create_task(executor.run(request, on_progress=on_progress))
    await asyncio.sleep(0.2)
    assert not first_step.is_set()
    started = time.perf_counter()
    running[0].cancel()
    await first_step.wait()
    seconds = time.perf_counter() - started
    running[1].cancel()
    await queued
    await asyncio.gather(*running, return_exceptions=True)
    return seconds
