"""The orders that the executor's bench sets, and three ways to have them done: joining any step, one by one, in whole batches."""

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
    """An order and the moment it comes, in seconds from the start."""

    at: float
    request: DiffusionRequest


@dataclass(frozen=True)
class ScheduleResult:
    """`finish`: each order's seconds from its arrival to its pictures."""

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
    dice = random.Random(seed)  # noqa: S311 - the same orders each time
    loras = [None, *(lora_file(models[f"tiny-lora-{name}"]) for name in "abc")]
    return [
        Arrival(
            number * gap_seconds,
            DiffusionRequest(
                prompt=f"order {number}", seed=number, width=side, height=side, steps=dice.choice((15, 20, 30, 50)),
                guidance_scale=dice.choice((5.0, 7.5, 9.0)), lora=loras[number % 4],
            ),
        )
        for number in range(count)
    ]  # fmt: skip


def lora_file(file: Path, scale: float = 1.0) -> LoraFile:
    return LoraFile(file, file_sha256(file), scale, file.name)


async def run_step_batching(executor: Executor, arrivals: Sequence[Arrival]) -> ScheduleResult:
    """Step batching: each order is handed over when it comes."""

    async def order(arrival: Arrival, start: float) -> float:
        await asyncio.sleep(max(0.0, start + arrival.at - time.perf_counter()))
        await executor.run(arrival.request)
        return time.perf_counter() - start - arrival.at

    return await measure_schedule(lambda start: asyncio.gather(*(order(arrival, start) for arrival in arrivals)))


async def run_sequentially(executor: Executor, arrivals: Sequence[Arrival]) -> ScheduleResult:
    async def orders(start: float) -> list[float]:
        finish = []
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, start + arrival.at - time.perf_counter()))
            await executor.run(arrival.request)
            finish.append(time.perf_counter() - start - arrival.at)
        return finish

    return await measure_schedule(orders)


async def run_static_batching(executor: Executor, arrivals: Sequence[Arrival], batch_size: int) -> ScheduleResult:
    """Static batching: whoever is there begins together, all leave with the slowest. Unlike a stock batch it may mix steps and LoRAs."""

    async def orders(start: float) -> list[float]:
        left, finish = list(arrivals), []
        while left:
            await asyncio.sleep(max(0.0, start + left[0].at - time.perf_counter()))
            there = [arrival for arrival in left if start + arrival.at <= time.perf_counter()][:batch_size]
            await asyncio.gather(*(executor.run(arrival.request) for arrival in there))
            finish += [time.perf_counter() - start - arrival.at for arrival in there]
            left = left[len(there) :]
        return finish

    return await measure_schedule(orders)


async def measure_schedule(schedule: Callable[[float], Awaitable[Any]]) -> ScheduleResult:
    start = time.perf_counter()
    finish = list(await schedule(start))
    return ScheduleResult(time.perf_counter() - start, finish)


async def measure_cancel_latency(executor: Executor, request: DiffusionRequest) -> float:
    """Fill the device, cancel one, and wait for the first step of the one that waited. Seconds."""
    begun, first_step = asyncio.Event(), asyncio.Event()
    endless = replace(request, steps=500, count=4)
    at_work = [asyncio.create_task(executor.run(endless, weight=5, on_progress=lambda _: begun.set())) for _ in range(2)]
    await begun.wait()

    def noticed(event: Progressed) -> None:
        if event.step:
            first_step.set()

    waiting = asyncio.create_task(executor.run(request, on_progress=noticed))
    await asyncio.sleep(0.2)
    assert not first_step.is_set()
    started = time.perf_counter()
    at_work[0].cancel()
    await first_step.wait()
    seconds = time.perf_counter() - started
    at_work[1].cancel()
    await waiting
    await asyncio.gather(*at_work, return_exceptions=True)
    return seconds
