"""`atelier bench vlm`: questions about images, 1, 4 and 16 at once, by the engine and by transformers' own `generate`, in one run.

Without `--model`, checkpoints of the chosen families are created with random weights: a LLaVA-1.5 large enough that the weights outweigh
the overhead, and tiny ones of other families, which show the overhead alone. Sides and batch sizes are measured in alternating order, so
that a busy moment of the machine affects all of them.
"""

import asyncio
import io
import os
import random
import subprocess
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from actors.engines.language.requests import VlmOptions, VlmRequest
from actors.engines.language.tiny_llava import write_tiny_llava
from actors.engines.language.tiny_vision import write_tiny_vision
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings
from benchmarks.harness import alternate, median_ratio, print_figures, show_progress
from benchmarks.stock_language import open_stock_model
from benchmarks.vllm_server import VLLM_PYTHON
from bus.observability.logs import configure_logging

ENGINE = "actors.engines.language.vision_model:open_engine"
SIDES = ("engine", "generate")
BATCH_SIZES = (1, 4, 16)
REQUEST_COUNT = 16
"""Requests of a round, in batches of each size."""
MAX_SECONDS = 900
"""Of one family."""
LAYER_COUNT = 4
RunBatch = Callable[[Sequence[VlmRequest]], Awaitable[int]]


def bench(arguments: Namespace) -> int:
    configure_logging("WARNING")
    with TemporaryDirectory(prefix="atelier-bench-") as folder:
        figures = asyncio.run(
            measure(Path(folder), arguments.model, families=arguments.families, tokens=arguments.tokens, rounds=arguments.rounds)
        )
    print_figures(figures, as_json=arguments.json, format_text=format_text)
    return 0


async def measure(
    folder: Path, model: str | None = None, *, families: Sequence[str] = ("llava",), tokens: int = 48, rounds: int = 3, hidden: int = 1024
) -> dict[str, Any]:
    """The figures of each family, or of `model` alone. `hidden`: the width of the LLaVA-1.5. Raises TimeoutError."""
    own = {} if model else {name: await asyncio.to_thread(write_checkpoint, name, folder / name, hidden) for name in families}
    measured = {}
    for name, source in ({model: model} if model else own).items():
        show_progress(name)
        async with asyncio.timeout(MAX_SECONDS):
            measured[name] = await measure_model(source, tokens, rounds)
    conditions = {"questions": REQUEST_COUNT, "tokens_each": tokens, "rounds": rounds, "cpus": os.cpu_count()}
    return {"families": measured, "left_out": {"vllm": await asyncio.to_thread(why_without_vllm)}, "conditions": conditions}


def write_checkpoint(family: str, folder: Path, hidden: int) -> str:
    if family == "llava":
        write_tiny_llava(folder, hidden_size=hidden, num_layers=LAYER_COUNT)
    else:
        write_tiny_vision(f"tiny-{family}", folder)
    return str(folder)


async def measure_model(model: str, tokens: int, rounds: int) -> dict[str, Any]:
    """`over_generate`: the engine's tokens per second over those of `generate`. `batch_speedup`: the engine's over its own, one by one."""
    threads = os.cpu_count() or 1
    options = VlmOptions(model, dtype="float32", quantization="none", max_rows=max(BATCH_SIZES), window_seconds=0.01, threads=threads)
    async with (
        open_stock_model("vision", model, dtype="float32", threads=threads) as generate,
        open_executor(EngineSpec(ENGINE, options), ExecutorSettings(), max_in_flight=64, capacity=max(BATCH_SIZES)) as executor,
    ):
        await executor.ready()
        run: dict[str, RunBatch] = {"engine": engine_side(executor), "generate": generate}
        for side in SIDES:
            await measure_rate(run[side], 4, 4)
        rates: dict[int, dict[str, list[float]]] = {size: {side: [] for side in SIDES} for size in BATCH_SIZES}
        for size in BATCH_SIZES:
            for side in alternate(SIDES, rounds):
                rates[size][side].append(await measure_rate(run[side], size, tokens))
                show_progress(f"  {size} at once, {side}: {rates[size][side][-1]:.1f} tokens/s")
        info = executor.info
    return summarize(rates) | {name: info[name] for name in ("family", "device", "dtype", "quantization", "model_bytes")}


def summarize(rates: Mapping[int, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Medians of the rounds; ratios round by round."""
    engine = {size: sides["engine"] for size, sides in rates.items()}
    smallest = min(rates)
    return {
        "tokens_per_second": {str(size): {side: round(median(sides[side]), 1) for side in sides} for size, sides in rates.items()},
        "over_generate": {str(size): median_ratio(sides["engine"], sides["generate"]) for size, sides in rates.items()},
        "batch_speedup": {str(size): median_ratio(engine[size], engine[smallest]) for size in rates if size != smallest},
    }


def engine_side(executor: Executor) -> RunBatch:
    async def run(requests: Sequence[VlmRequest]) -> int:
        outcomes = await asyncio.gather(*(executor.run(request) for request in requests))
        return sum(outcome.result.completion_tokens for outcome in outcomes)

    return run


async def measure_rate(run: RunBatch, size: int, tokens: int) -> float:
    """Tokens per second of all requests in batches of a size, one batch after another. Random weights may end an answer early."""
    requests, began, generated = sample_requests(tokens), time.perf_counter(), 0
    for first in range(0, len(requests), size):
        generated += await run(requests[first : first + size])
    return generated / (time.perf_counter() - began)


def sample_requests(tokens: int, count: int | None = None) -> Sequence[VlmRequest]:
    """Requests with one image each, the same every time. `count`: default REQUEST_COUNT."""
    rng = random.Random(7)  # noqa: S311 - pixels, not secrets
    pictures = [Image.frombytes("RGB", (16, 16), rng.randbytes(768)).resize((64, 64)) for _ in range(count or REQUEST_COUNT)]
    return [VlmRequest(f"What is shown in picture {number}?", (encode_png(picture),), tokens) for number, picture in enumerate(pictures)]


def encode_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def why_without_vllm() -> str:
    """vLLM takes its image processors from transformers, whose usual ones need torchvision."""
    if not VLLM_PYTHON.exists():
        return "vLLM is not installed; `make venv-vllm` installs it, without torchvision"
    script = "import importlib.util as u; print(u.find_spec('torchvision') is not None)"
    found = subprocess.run([VLLM_PYTHON, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "True"
    return (
        "pictures are not measured with vLLM here" if found else "the vLLM of `make venv-vllm` has no torchvision, which its pictures need"
    )


def format_text(figures: Mapping[str, Any]) -> str:
    lines = []
    for name, family in figures["families"].items():
        lines.append(f"{name} ({family['family']}, {family['model_bytes']} bytes), tokens per second:")
        for size, sides in family["tokens_per_second"].items():
            ratio = family["over_generate"][size]
            lines.append(f"{size:>4} at once  " + "  ".join(f"{side} {rate}" for side, rate in sides.items()) + f"  ({ratio} times)")
    return "\n".join([*lines, *(f"{side} is left out: {reason}" for side, reason in figures["left_out"].items())])
