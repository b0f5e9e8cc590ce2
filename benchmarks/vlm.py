"""`atelier bench vlm`: questions about images in batches of 1, 4 and 8, by one engine in one run.

Without `--model` a LLaVA with the real classes and random weights is created, large enough that the weights outweigh the overhead.
The batch sizes are measured several times, in turns, so that a busy moment of the machine affects all of them.
"""

import asyncio
import io
import os
import random
import statistics
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from actors.engines.language.requests import VlmOptions, VlmRequest
from actors.engines.language.tiny_llava import write_tiny_llava
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings
from benchmarks.harness import print_figures
from bus.observability.logs import configure_logging

ENGINE = "actors.engines.language.vision_model:open_engine"
BATCH_SIZES = (1, 4, 8)
REQUEST_COUNT = 8
"""Requests of a round, in batches of each size."""


def bench(arguments: Namespace) -> int:
    configure_logging("WARNING")
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        figures = asyncio.run(measure(Path(folder), arguments.model, tokens=arguments.tokens, rounds=arguments.rounds))
    print_figures(figures, as_json=arguments.json)
    return 0


async def measure(folder: Path, model: str | None = None, *, tokens: int = 48, rounds: int = 3, hidden: int = 1024) -> dict[str, Any]:
    """`batch_speedup`: answers per second in batches of 4 and 8 divided by those one by one; medians of the rounds."""
    if model is None:
        model = str(folder / "llava")
        await asyncio.to_thread(write_tiny_llava, Path(model), hidden_size=hidden, num_layers=4)
    options = VlmOptions(model, max_rows=max(BATCH_SIZES), window_seconds=0.01, threads=os.cpu_count())
    async with open_executor(EngineSpec(ENGINE, options), ExecutorSettings(), max_in_flight=64, capacity=max(BATCH_SIZES)) as executor:
        await executor.ready()
        await measure_batch_seconds(executor, 1, 4)
        durations: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
        for _ in range(rounds):
            for size in BATCH_SIZES:
                durations[size].append(await measure_batch_seconds(executor, size, tokens))
        info = executor.info
    medians = {size: statistics.median(times) for size, times in durations.items()}
    return {
        "batch_speedup": {str(size): round(medians[1] / medians[size], 3) for size in BATCH_SIZES if size > 1},
        "tokens_per_second": {str(size): round(REQUEST_COUNT * tokens / medians[size], 1) for size in BATCH_SIZES},
        "conditions": {"questions": REQUEST_COUNT, "tokens_each": tokens, "rounds": rounds, "cpus": os.cpu_count()}
        | {name: info[name] for name in ("device", "dtype", "quantization", "model_bytes")},
    }


async def measure_batch_seconds(executor: Executor, size: int, tokens: int) -> float:
    """Seconds that all requests take in batches of a size, one batch after another."""
    requests = sample_requests(tokens)
    started = time.perf_counter()
    for first in range(0, len(requests), size):
        await asyncio.gather(*(executor.run(request) for request in requests[first : first + size]))
    return time.perf_counter() - started


def sample_requests(tokens: int, count: int = REQUEST_COUNT) -> Sequence[VlmRequest]:
    """Requests with one image each, the same every time."""
    rng = random.Random(7)  # noqa: S311 - pixels, not secrets
    pictures = [Image.frombytes("RGB", (16, 16), rng.randbytes(768)).resize((64, 64)) for _ in range(count)]
    return [VlmRequest(f"What is shown in picture {number}?", (encode_png(picture),), tokens) for number, picture in enumerate(pictures)]


def encode_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
