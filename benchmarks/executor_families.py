"""Every model family in the executor benchmark: what a call with more rows costs, and orders per second against two alternatives."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from benchmarks.executor_workloads import Arrival, run_sequentially, run_static_batching, run_step_batching
from benchmarks.family_costs import LIMIT_SECONDS, measure_in_subprocess
from benchmarks.harness import alternate, median_ratio
from ops.errors import SetupError

ENGINE = "actors.engines.diffusion.engine:open_engine"
CHECKPOINTS = ("tiny-sd15", "tiny-sdxl", "tiny-sd3", "tiny-flux", "tiny-qwen-image", "tiny-z-image", "tiny-pixart-sigma")
SIDES = (64, 128)
ROWS = 8
SCHEDULES = ("step", "static", "single")


async def measure_families(models: Mapping[str, Path], threads: int, *, quick: bool) -> dict[str, Any]:
    """`families`: name → size → rows → cost relative to one row. `family_speedup`: name → way → orders per second over one by one."""
    checkpoints = {name: models[name] for name in (CHECKPOINTS[:1] if quick else CHECKPOINTS)}
    sides, rounds = (SIDES[:1], 1) if quick else (SIDES, 5)
    costs = await asyncio.to_thread(measure_in_subprocess, checkpoints, sides, rounds, threads)
    return {"families": costs, "family_speedup": await measure_schedules(checkpoints, threads, quick=quick)}


async def measure_schedules(checkpoints: Mapping[str, Path], threads: int, *, quick: bool) -> dict[str, Any]:
    """One engine that has all families in memory. Raises SetupError when it takes longer than LIMIT_SECONDS."""
    named = {name: str(path) for name, path in checkpoints.items()}
    seconds = 0.0 if quick else 2.0
    settings = ImageSettings(model=next(iter(named.values())), models=named, threads=threads, max_rows=ROWS, measure_seconds=seconds)
    try:
        async with (
            asyncio.timeout(LIMIT_SECONDS),
            open_executor(EngineSpec(ENGINE, settings), ExecutorSettings(), max_in_flight=1000, capacity=ROWS) as executor,
        ):
            await executor.ready()
            return {name: await measure_family(executor, name, *((4, 1) if quick else (12, 3))) for name in named}
    except TimeoutError:
        raise SetupError(f"The orders of the families took longer than {LIMIT_SECONDS:g} s: is the machine busy?") from None


async def measure_family(executor: Executor, name: str, count: int, rounds: int) -> dict[str, float]:
    """Orders arrive four times as fast as they are done one by one. The three ways take turns."""
    warmup = await run_sequentially(executor, staggered_orders(name, 2, 0.0))
    arrivals = staggered_orders(name, count, 1 / warmup.per_second / 4)
    rates: dict[str, list[float]] = {way: [] for way in SCHEDULES}
    for way in alternate(SCHEDULES, rounds):
        rates[way].append(await orders_per_second(executor, arrivals, way))
    speedups = {way: median_ratio(rates[way], rates["single"]) for way in ("step", "static")}
    return speedups | {"single_orders_per_second": round(median(rates["single"]), 2)}


async def orders_per_second(executor: Executor, arrivals: Sequence[Arrival], way: str) -> float:
    match way:
        case "step":
            return (await run_step_batching(executor, arrivals)).per_second
        case "static":
            return (await run_static_batching(executor, arrivals, ROWS)).per_second
        case _:
            return (await run_sequentially(executor, arrivals)).per_second


def staggered_orders(name: str, count: int, gap_seconds: float) -> list[Arrival]:
    """Orders of one family that differ in prompt, steps and guidance; the same each time."""
    rng = random.Random(1)  # noqa: S311
    return [
        Arrival(
            number * gap_seconds,
            DiffusionRequest(
                f"order {number}", number, width=SIDES[0], height=SIDES[0], steps=rng.choice((4, 6, 8, 12)),
                guidance_scale=rng.choice((3.0, 4.5, 7.0)), model=name,
            ),
        )
        for number in range(count)
    ]  # fmt: skip
