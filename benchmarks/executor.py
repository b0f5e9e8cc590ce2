"""`atelier bench executor`: event-loop lag, step batching against two alternatives, cancel latency and device use, in one run."""

import asyncio
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

from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from benchmarks.executor_families import CHECKPOINTS, measure_families
from benchmarks.executor_workloads import (
    lora_file,
    measure_cancel_latency,
    mixed_arrivals,
    run_sequentially,
    run_static_batching,
    run_step_batching,
)
from benchmarks.harness import print_figures
from benchmarks.inline_pipeline import NETWORK_SECONDS, measure_executor, measure_inline
from benchmarks.loop_lag import lag_quantiles, open_lag_probe
from bus.observability.logs import configure_logging
from ops.local.tiny_models import tiny_model_paths

ENGINE = "actors.engines.diffusion.engine:open_engine"
ROWS = 10
THREADS = max(1, (os.cpu_count() or 2) - 1)
LORA_SWAPS = 200


def bench(arguments: Namespace) -> int:
    configure_logging("WARNING")
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        figures = asyncio.run(measure(Path(folder), quick=getattr(arguments, "quick", False)))
    print_figures(figures, as_json=arguments.json)
    return 0


async def measure(folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """The figures by their documented names, and the conditions. `quick`: small numbers, for a test."""
    models = await asyncio.to_thread(make_models_in_subprocess, folder / "models")
    figures: dict[str, Any] = {}
    async with open_lag_probe() as idle_lags:
        await asyncio.sleep(0.5 if quick else 5.0)
    async with open_lag_probe() as lags:
        async with open_image_executor(models) as executor:
            await executor.ready()
            figures |= await measure_batching(executor, models, quick=quick)
            figures |= await measure_cancel(executor, tries=1 if quick else 5)
            requests = device_bound_requests(models, 3 if quick else 30, quick=quick)
            busy, throughput = await measure_executor(executor, requests)
            figures |= await measure_lora_swaps(executor, models, count=20 if quick else LORA_SWAPS)
        lag = lag_quantiles(lags)
    inline, inline_throughput = measure_inline(models["tiny-sd"], requests[: max(2, len(requests) // 4)], THREADS)
    figures |= await measure_families(models, THREADS, quick=quick)
    figures |= {"busy_share": round(busy, 3), "inline_busy_share": round(inline, 3)}
    figures |= {"orders_per_second": round(throughput, 3), "inline_orders_per_second": round(inline_throughput, 3)}
    return {"loop_lag_ms": lag, "idle_loop_lag_ms": lag_quantiles(idle_lags), **figures, "conditions": conditions()}


def make_models_in_subprocess(folder: Path) -> dict[str, Path]:
    """Make them where one is missing, in another process: an actor's own never imports torch, whose many objects make each garbage
    collection long.
    """
    models = tiny_model_paths(folder) | {name: folder / name for name in CHECKPOINTS}
    if all(path.exists() for path in models.values()):
        return models
    code = (
        "import sys; from pathlib import Path; from ops.local.tiny_models import make_tiny_families, make_tiny_models; "
        "make_tiny_models(Path(sys.argv[1])); make_tiny_families(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, stdout=2)
    return models


@asynccontextmanager
async def open_image_executor(models: dict[str, Path]) -> AsyncIterator[Executor]:
    settings = ImageSettings(model=str(models["tiny-sd"]), threads=THREADS, max_rows=ROWS)
    async with open_executor(EngineSpec(ENGINE, settings), ExecutorSettings(), max_in_flight=1000, capacity=ROWS) as executor:
        yield executor


async def measure_batching(executor: Executor, models: dict[str, Path], *, quick: bool) -> dict[str, Any]:
    """Speed-ups are orders per second divided by those one by one; arrivals come four times as fast as one by one can process them."""
    side, count = 64, 4 if quick else 32
    few = mixed_arrivals(models, count=4, gap_seconds=0.0, side=side)
    warmup = await run_sequentially(executor, few)
    arrivals = mixed_arrivals(models, count=count, gap_seconds=1 / warmup.per_second / 4, side=side)
    single = await run_sequentially(executor, arrivals)
    static = await run_static_batching(executor, arrivals, ROWS)
    stepwise = await run_step_batching(executor, arrivals)
    return {
        "step_batching_speedup": round(stepwise.per_second / single.per_second, 2),
        "static_batching_speedup": round(static.per_second / single.per_second, 2),
        "mean_finish_seconds": {
            name: round(run.mean_latency, 3) for name, run in (("step", stepwise), ("static", static), ("single", single))
        },
        "batching_orders_per_second": {
            name: round(run.per_second, 2) for name, run in (("step", stepwise), ("static", static), ("single", single))
        },
    }


async def measure_cancel(executor: Executor, *, tries: int) -> dict[str, Any]:
    request = DiffusionRequest("a cancelled order", 1, width=256, height=256, steps=2)
    seconds = sorted([await measure_cancel_latency(executor, request) for _ in range(tries)])
    return {"cancel_to_next_step_seconds": round(seconds[len(seconds) // 2], 4)}


def device_bound_requests(models: dict[str, Path], count: int, *, quick: bool) -> list[DiffusionRequest]:
    side, steps = (64, 10) if quick else (512, 50)
    return [DiffusionRequest(f"order {number}", number, width=side, height=side, steps=steps) for number in range(count)]


async def measure_lora_swaps(executor: Executor, models: dict[str, Path], *, count: int) -> dict[str, Any]:
    """Uses more LoRAs than fit at once; how much the process has grown from the first fifth to the end."""
    loras = [lora_file(models[f"tiny-lora-{name}"], scale=scale / 10) for scale in range(1, 8) for name in "abc"]
    request = DiffusionRequest("a swap", 1, width=64, height=64, steps=1)
    process, before, started = psutil.Process(executor.process_id), 0, time.perf_counter()
    for number in range(count):
        await executor.run(replace(request, loras=(loras[number % len(loras)],)))
        if number == count // 5:
            before = process.memory_info().rss
    seconds = time.perf_counter() - started
    return {"lora_swaps": {"count": count, "growth_bytes": process.memory_info().rss - before, "seconds_each": round(seconds / count, 4)}}


def conditions() -> dict[str, Any]:
    return {
        "device": "cpu", "cores": os.cpu_count(), "model_threads": THREADS, "model": "tiny-sd", "rows": ROWS,
        "batching_side": 64, "busy_side": 512, "family_rounds": "alternating, medians", "network_seconds": NETWORK_SECONDS,
        "torch": version("torch"), "diffusers": version("diffusers"),
    }  # fmt: skip
