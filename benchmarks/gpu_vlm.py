"""The vision-language half of `atelier bench gpu`: tokens per second in batches, and memory in half precision and in 8 bits."""

import asyncio
import time
from pathlib import Path
from typing import Any

from actors.engines.language.requests import Quantization, VlmOptions
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings
from benchmarks.full_size_models import SMALL_SIZES, write_llava_7b
from benchmarks.vlm import ENGINE, sample_requests

BATCHES = (1, 8, 16)


async def measure(folder: Path, *, real: bool, tokens: int) -> dict[str, Any]:
    await asyncio.to_thread(write_llava_7b, folder, None if real else SMALL_SIZES)
    half, eight_bit = [await measure_quantization(folder, quantization, tokens) for quantization in ("none", "8bit")]
    return {
        "tokens_per_second": {half["dtype"]: half["speeds"], "8bit": eight_bit["speeds"]},
        "model_bytes": {half["dtype"]: half["model_bytes"], eight_bit["quantization"]: eight_bit["model_bytes"]},
        "memory_bytes": {half["dtype"]: half["memory_after_bytes"], eight_bit["quantization"]: eight_bit["memory_after_bytes"]},
        "load_seconds": {half["dtype"]: half["load_seconds"], eight_bit["quantization"]: eight_bit["load_seconds"]},
        "conditions": {
            "size": "LLaVA-1.5-7B" if real else "small",
            "device": half["device"],
            "tokens_each": tokens,
            "questions": "one picture each",
        },
    }


async def measure_quantization(folder: Path, quantization: Quantization, tokens: int) -> dict[str, Any]:
    """The info, speeds and loading time of an engine with these weights."""
    options = VlmOptions(str(folder), quantization=quantization, max_rows=max(BATCHES), window_seconds=0.05)
    began = time.perf_counter()
    async with open_executor(EngineSpec(ENGINE, options), ExecutorSettings(), max_in_flight=64, capacity=max(BATCHES)) as executor:
        await executor.ready()
        load_seconds = round(time.perf_counter() - began, 2)
        await tokens_per_second(executor, 1, 4)
        speeds = {str(size): await tokens_per_second(executor, size, tokens) for size in BATCHES}
        return executor.info | {"speeds": speeds, "load_seconds": load_seconds}


async def tokens_per_second(executor: Executor, size: int, tokens: int) -> float:
    """One batch of a size. Counts generated tokens: random weights may produce an end token early."""
    began = time.perf_counter()
    outcomes = await asyncio.gather(*(executor.run(request) for request in sample_requests(tokens, size)))
    generated: int = sum(outcome.result.completion_tokens for outcome in outcomes)
    return round(generated / (time.perf_counter() - began), 2)
