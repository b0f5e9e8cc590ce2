"""`atelier bench gpu`: images per second with 1, 4 and 10 requests in flight, calls of Stable Diffusion 1.5, XL and Flux with 1 to 8 rows,
and tokens per second in batches of 1, 8 and 16.

At the sizes of the real models on CUDA, at tiny ones on a CPU. The weights are random: memory and speed do not depend on the values.
"""

import asyncio
import sys
import time
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.diffusion.tiny_stable_diffusion import write_tiny_diffusion
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from benchmarks import gpu_families, gpu_vlm
from benchmarks.full_size_models import write_sd15_size
from benchmarks.harness import print_figures
from bus.observability.logs import configure_logging

ENGINE = "actors.engines.diffusion.engine:open_engine"
CONCURRENCIES = (1, 4, 10)


def bench(arguments: Namespace) -> int:
    configure_logging("WARNING")
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        figures = asyncio.run(measure(Path(folder), size=getattr(arguments, "size", "auto")))
    print_figures(figures, as_json=arguments.json)
    return 0


def has_nvidia_driver() -> bool:
    """Whether NVIDIA's driver is loaded. Without torch, which must not touch the device in this process."""
    return Path("/proc/driver/nvidia/version").exists()


async def measure(folder: Path, *, size: str = "auto", side: int = 512, steps: int = 50, tokens: int = 128) -> dict[str, Any]:
    """`size`: `real`, `tiny`, or `auto` (real where NVIDIA's driver is loaded)."""
    real = size == "real" or (size == "auto" and has_nvidia_driver())
    print_progress("Stable Diffusion: creating the weights, then generating")
    images = await measure_images(folder / "model", real, side, steps)
    print_progress("Stable Diffusion 1.5, XL and Flux: making the weights in memory, then calls with 1 to 8 rows")
    families = await asyncio.to_thread(gpu_families.measure_families, tiny=not real)
    print_progress("LLaVA: creating the weights (14 GB at the real size), then generating in half precision and in 8 bits")
    return images | {"families": families, "llava": await gpu_vlm.measure(folder / "llava", real=real, tokens=tokens)}


def print_progress(message: str) -> None:
    sys.stderr.write(f"{message} …\n")


async def measure_images(model: Path, real: bool, side: int, steps: int) -> dict[str, Any]:
    await asyncio.to_thread(write_sd15_size if real else write_tiny_diffusion, model)
    settings = ImageSettings(model=str(model), max_rows=max(CONCURRENCIES), hash_weights=False)
    async with open_executor(EngineSpec(ENGINE, settings), ExecutorSettings(), max_in_flight=100, capacity=max(CONCURRENCIES)) as executor:
        began = time.perf_counter()
        await executor.ready()
        load_seconds = time.perf_counter() - began
        await executor.run(image_request(0, side, 2))
        requests = [image_request(number, side, steps) for number in range(max(CONCURRENCIES))]
        speeds = {str(count): await images_per_second(executor, requests[:count]) for count in CONCURRENCIES}
    return {
        "images_per_second": speeds,
        "load_seconds": round(load_seconds, 2),
        "engine": executor.info,
        "levels": executor.stats.engine_metrics.gauges,
        "conditions": {"size": "Stable Diffusion 1.5" if real else "tiny", "side": side, "steps": steps, "scheduler": "dpm++"},
    }


def image_request(number: int, side: int, steps: int) -> DiffusionRequest:
    return DiffusionRequest(f"order {number}", number, width=side, height=side, steps=steps)


async def images_per_second(executor: Executor, requests: list[DiffusionRequest]) -> float:
    """Two rounds of all the requests at once."""
    began = time.perf_counter()
    for _ in range(2):
        await asyncio.gather(*(executor.run(request) for request in requests))
    return round(2 * len(requests) / (time.perf_counter() - began), 3)
