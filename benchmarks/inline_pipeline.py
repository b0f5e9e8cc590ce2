"""The loop that the image worker replaces, and ours, on the same orders: how much of the time the device is at work.

Every call over the network (the LoRA, the upload, five reports of progress, the last webhook) waits for `NETWORK_SECONDS` in both.
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
    """Receive, download, generate, watermark, upload, webhook, one after the other. The device's share, and orders per second."""
    generate = open_stock_pipeline_with_progress(model, threads)
    generate(requests[0])
    began, busy = time.perf_counter(), 0.0
    for work in requests:
        time.sleep(NETWORK_SECONDS)
        started = time.perf_counter()
        picture, reporting = generate(work)
        busy += time.perf_counter() - started - reporting
        draw_watermark(picture)
        time.sleep(NETWORK_SECONDS)
        time.sleep(NETWORK_SECONDS)
    seconds = time.perf_counter() - began
    return busy / seconds, len(requests) / seconds


def open_stock_pipeline_with_progress(model: Path, threads: int) -> Any:
    """The stock pipeline, whose callback reports progress while the device waits."""
    from benchmarks.stock_pipelines import open_stock_pipeline

    draw = open_stock_pipeline(model, threads)

    def generate(work: DiffusionRequest) -> tuple[bytes, float]:
        left, waited = list(PROGRESS_PERCENTS), 0.0

        def report(step: int) -> None:
            nonlocal waited
            if left and step * 100 // work.steps >= left[0]:
                left.pop(0)
                time.sleep(NETWORK_SECONDS)
                waited += NETWORK_SECONDS

        return draw(work, report), waited

    return generate


async def measure_executor(executor: Executor, requests: Sequence[DiffusionRequest]) -> tuple[float, float]:
    """The same orders through the executor, ten in hand. The share is the model process's own: seconds in steps by seconds of the wall."""
    hands = asyncio.Semaphore(executor.max_in_flight)

    async def order(work: DiffusionRequest) -> None:
        async with hands:
            await asyncio.sleep(NETWORK_SECONDS)
            outcome = await executor.run(work, on_progress=lambda _: None)
            await asyncio.to_thread(draw_watermark, outcome.outputs[0])
            await asyncio.sleep(2 * NETWORK_SECONDS)

    began, busy = time.perf_counter(), executor.stats.busy_seconds
    await asyncio.gather(*(order(work) for work in requests))
    seconds = time.perf_counter() - began
    return (executor.stats.busy_seconds - busy) / seconds, len(requests) / seconds


def draw_watermark(picture: bytes) -> bytes:
    """A text in the corner, and a PNG again."""
    from PIL import Image, ImageDraw

    image = Image.open(BytesIO(picture)).convert("RGB")
    ImageDraw.Draw(image).text((10, image.height - 20), "signature", fill="white")
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
