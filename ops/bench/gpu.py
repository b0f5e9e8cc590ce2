"""`atelier bench gpu`: pictures per second with 1, 4 and 10 orders in hand, and tokens per second in batches of 1, 8 and 16.

At the real models' sizes on CUDA, at tiny ones on a CPU. The weights are random: memory and speed do not depend on the values.
"""

import asyncio
import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from actors.engines.executor import Executor, open_executor
from actors.engines.image_work import ImageWork
from actors.engines.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings, ImageSettings
from actors.engines.tiny_diffusion import write_diffusion, write_real_size
from bus.logs import open_logs
from ops.bench import gpu_vlm

ENGINE = "actors.engines.diffusers_image:open_engine"
IN_HAND = (1, 4, 10)


def bench(arguments: Namespace) -> int:
    open_logs("WARNING")
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        figures = asyncio.run(run(Path(folder), size=getattr(arguments, "size", "auto")))
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{name:>28}  {value}\n" for name, value in figures.items()))
    return 0


def has_gpu() -> bool:
    """Whether NVIDIA's driver is loaded. Torch is not asked: it must not touch the device in this process."""
    return Path("/proc/driver/nvidia/version").exists()


async def run(folder: Path, *, size: str = "auto", side: int = 512, steps: int = 50, tokens: int = 128) -> dict[str, Any]:
    """`size`: `real`, `tiny`, or `auto` (real where there is a driver of NVIDIA's)."""
    real = size == "real" or (size == "auto" and has_gpu())
    told("Stable Diffusion: making the weights, then drawing")
    pictures = await draw(folder / "model", real, side, steps)
    told("LLaVA: making the weights (14 GB at the real size), then answering in half precision and in 8 bits")
    return pictures | {"llava": await gpu_vlm.run(folder / "llava", real=real, tokens=tokens)}


def told(what: str) -> None:
    sys.stderr.write(f"{what} …\n")


async def draw(model: Path, real: bool, side: int, steps: int) -> dict[str, Any]:
    await asyncio.to_thread(write_real_size if real else write_diffusion, model)
    settings = ImageSettings(model=str(model), max_rows=max(IN_HAND), hash_weights=False)
    async with open_executor(EngineSpec(ENGINE, settings), ExecutorSettings(), admit=100, capacity=max(IN_HAND)) as executor:
        began = time.perf_counter()
        await executor.ready()
        load_seconds = time.perf_counter() - began
        await executor.run(work(0, side, 2))
        orders = [work(number, side, steps) for number in range(max(IN_HAND))]
        pictures = {str(hands): await pictures_per_second(executor, orders[:hands]) for hands in IN_HAND}
    return {
        "images_per_second": pictures,
        "load_seconds": round(load_seconds, 2),
        "engine": executor.info,
        "levels": executor.stats.gauges.levels,
        "conditions": {"size": "Stable Diffusion 1.5" if real else "tiny", "side": side, "steps": steps, "scheduler": "dpm++"},
    }


def work(number: int, side: int, steps: int) -> ImageWork:
    return ImageWork(f"order {number}", number, width=side, height=side, steps=steps)


async def pictures_per_second(executor: Executor, works: list[ImageWork]) -> float:
    """Two rounds of all the orders at once."""
    began = time.perf_counter()
    for _ in range(2):
        await asyncio.gather(*(executor.run(one) for one in works))
    return round(2 * len(works) / (time.perf_counter() - began), 3)
