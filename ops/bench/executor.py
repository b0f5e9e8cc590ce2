"""`atelier bench executor`: the loop's lag, step batching against its two rivals, cancel, and how busy the device is. All in one run."""

import asyncio
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from actors.engines.executor import Executor, open_executor
from actors.engines.image_work import ImageWork
from actors.engines.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from bus.logs import open_logs
from ops.bench.inline import NETWORK_SECONDS, executor_share, inline_share
from ops.bench.loop_lag import open_lag_probe, quantiles
from ops.bench.orders import cancel_to_next_step, in_whole_batches, joining_any_step, lora_of, mixed_orders, one_by_one
from ops.models import make_tiny

ENGINE = "actors.engines.diffusers_image:open_engine"
ROWS = 10
THREADS = max(1, (os.cpu_count() or 2) - 1)
SWAPS = 200


def bench(arguments: Namespace) -> int:
    open_logs("WARNING")
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        figures = asyncio.run(run(Path(folder), quick=getattr(arguments, "quick", False)))
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{name:>28}  {value}\n" for name, value in figures.items()))
    return 0


async def run(folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """The figures by their agreed names, and the conditions they were taken under. `quick`: small numbers, for a test."""
    made = await asyncio.to_thread(made_elsewhere, folder / "models")
    figures: dict[str, Any] = {}
    async with open_lag_probe() as idle_lags:
        await asyncio.sleep(0.5 if quick else 5.0)
    async with open_lag_probe() as lags:
        async with open_studio(made) as executor:
            await executor.ready()
            figures |= await of_batching(executor, made, quick=quick)
            figures |= await of_cancel(executor, tries=1 if quick else 5)
            works = busy_works(made, 3 if quick else 30, quick=quick)
            busy, throughput = await executor_share(executor, works)
            figures |= await of_swaps(executor, made, count=20 if quick else SWAPS)
        lag = quantiles(lags)
    inline, inline_throughput = inline_share(made["tiny-sd"], works[: max(2, len(works) // 4)], THREADS)
    figures |= {"busy_share": round(busy, 3), "inline_busy_share": round(inline, 3)}
    figures |= {"orders_per_second": round(throughput, 3), "inline_orders_per_second": round(inline_throughput, 3)}
    return {"loop_lag_ms": lag, "idle_loop_lag_ms": quantiles(idle_lags), **figures, "conditions": conditions()}


def made_elsewhere(folder: Path) -> dict[str, Path]:
    """Made by another process: an actor's own never imports torch, whose objects alone make each garbage collection long."""
    code = "import sys; from pathlib import Path; from ops.models import make_tiny; make_tiny(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, stdout=2)
    return make_tiny(folder)


@asynccontextmanager
async def open_studio(made: dict[str, Path]) -> AsyncIterator[Executor]:
    settings = ImageSettings(model=str(made["tiny-sd"]), threads=THREADS, max_rows=ROWS)
    async with open_executor(EngineSpec(ENGINE, settings), ExecutorSettings(), admit=1000, capacity=ROWS) as executor:
        yield executor


async def of_batching(executor: Executor, made: dict[str, Path], *, quick: bool) -> dict[str, Any]:
    """Speed-ups are orders per second over one by one; arrivals come four times as fast as one by one can do them."""
    side, count = 64, 6 if quick else 32
    warm = mixed_orders(made, count=4, gap_seconds=0.0, side=side)
    alone = await one_by_one(executor, warm)
    arrivals = mixed_orders(made, count=count, gap_seconds=1 / alone.per_second / 4, side=side)
    single = await one_by_one(executor, arrivals)
    whole = await in_whole_batches(executor, arrivals, ROWS)
    joined = await joining_any_step(executor, arrivals)
    return {
        "step_batching_speedup": round(joined.per_second / single.per_second, 2),
        "static_batching_speedup": round(whole.per_second / single.per_second, 2),
        "mean_finish_seconds": {name: round(run.mean_finish, 3) for name, run in (("step", joined), ("static", whole), ("single", single))},
        "batching_orders_per_second": {
            name: round(run.per_second, 2) for name, run in (("step", joined), ("static", whole), ("single", single))
        },
    }


async def of_cancel(executor: Executor, *, tries: int) -> dict[str, Any]:
    work = ImageWork("a cancelled order", 1, width=256, height=256, steps=2)
    seconds = sorted([await cancel_to_next_step(executor, work) for _ in range(tries)])
    return {"cancel_to_next_step_seconds": round(seconds[len(seconds) // 2], 4)}


def busy_works(made: dict[str, Path], count: int, *, quick: bool) -> list[ImageWork]:
    side, steps = (64, 10) if quick else (512, 50)
    return [ImageWork(f"order {number}", number, width=side, height=side, steps=steps) for number in range(count)]


async def of_swaps(executor: Executor, made: dict[str, Path], *, count: int) -> dict[str, Any]:
    """LoRAs that never fit all at once; how much the process has grown from the first fifth to the end."""
    loras = [lora_of(made[f"tiny-lora-{name}"], scale=scale / 10) for scale in range(1, 8) for name in "abc"]
    work = ImageWork("a swap", 1, width=64, height=64, steps=1)
    process, before, started = psutil.Process(executor.process_id), 0, time.perf_counter()
    for number in range(count):
        await executor.run(replace(work, lora=loras[number % len(loras)]))
        if number == count // 5:
            before = process.memory_info().rss
    seconds = time.perf_counter() - started
    return {"lora_swaps": {"count": count, "growth_bytes": process.memory_info().rss - before, "seconds_each": round(seconds / count, 4)}}


def conditions() -> dict[str, Any]:
    return {
        "device": "cpu", "cores": os.cpu_count(), "model_threads": THREADS, "model": "tiny-sd", "rows": ROWS,
        "batching_side": 64, "busy_side": 512, "network_seconds": NETWORK_SECONDS,
        "torch": version("torch"), "diffusers": version("diffusers"),
    }  # fmt: skip
