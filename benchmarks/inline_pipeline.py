"""The inline loop of the source system, and the executor, on the same requests: the share of time in which the device is busy.

Every network call (LoRA, upload, five progress reports, last webhook) waits for `NETWORK_SECONDS` in both.
"""

import asyncio
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from actors.engines.diffusion.progress import PROGRESS_PERCENTS
from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.process.executor import Executor

NETWORK_SECONDS = 0.05


def measure_inline(model: Path, requests: Sequence[DiffusionRequest], threads: int) -> tuple[float, float]:
    """Receive, download, generate, watermark, upload, webhook, one after another. Returns the busy share and orders per second."""
    generate = open_stock_pipeline_with_progress(model, threads)
    generate(requests[0])
    began, busy = time.perf_counter(), 0.0
    for request in requests:
        time.sleep(NETWORK_SECONDS)
        started = time.perf_counter()
        picture, reporting = generate(request)
        busy += time.perf_counter() - started - reporting
        draw_watermark(picture)
        time.sleep(NETWORK_SECONDS)
        time.sleep(NETWORK_SECONDS)
    seconds = time.perf_counter() - began
    return busy / seconds, len(requests) / seconds


def open_stock_pipeline_with_progress(model: Path, threads: int) -> Any:
    """The stock pipeline, whose callback reports progress while the device waits. Returns a PNG and the seconds of reporting."""
    from benchmarks.stock_pipelines import open_stock_pipeline

    draw = open_stock_pipeline(model, threads)

    def generate(request: DiffusionRequest) -> tuple[bytes, float]:
        milestones, waited = list(PROGRESS_PERCENTS), 0.0
        steps = request.steps or 1

        def report(step: int) -> None:
            nonlocal waited
            if milestones and step * 100 // steps >= milestones[0]:
                milestones.pop(0)
                time.sleep(NETWORK_SECONDS)
                waited += NETWORK_SECONDS

        return draw(request, report), waited

    return generate


async def measure_executor(executor: Executor, requests: Sequence[DiffusionRequest]) -> tuple[float, float]:
    """The same through the executor. The busy share is the model process's own: seconds in steps divided by wall-clock seconds."""
    slots = asyncio.Semaphore(executor.max_in_flight)

    async def run(request: DiffusionRequest) -> None:
        async with slots:
            await asyncio.sleep(NETWORK_SECONDS)
            outcome = await executor.run(request, on_progress=lambda _: None)
            await asyncio.to_thread(draw_watermark, outcome.outputs[0])
            await asyncio.sleep(2 * NETWORK_SECONDS)

    began, busy = time.perf_counter(), executor.stats.busy_seconds
    await asyncio.gather(*(run(request) for request in requests))
    seconds = time.perf_counter() - began
    return (executor.stats.busy_seconds - busy) / seconds, len(requests) / seconds


def draw_watermark(picture: bytes) -> bytes:
    """Draw a text into the corner; returns a PNG."""
    from PIL import Image, ImageDraw

    image = Image.open(BytesIO(picture)).convert("RGB")
    ImageDraw.Draw(image).text((10, image.height - 20), "signature", fill="white")
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
