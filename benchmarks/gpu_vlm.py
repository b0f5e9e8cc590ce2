"""The seeing half of `atelier bench gpu`: tokens per second in batches of 1, 8 and 16, and memory in half precision and in 8 bits."""

import asyncio
import time
from pathlib import Path
from typing import Any

from actors.engines.language.requests import Quantization, VlmOptions
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings
from benchmarks.llava_7b import SMALL_SIZES, write_llava_7b
from benchmarks.vlm import ENGINE, sample_requests

BATCHES = (1, 8, 16)


async def measure(folder: Path, *, real: bool, tokens: int) -> dict[str, Any]:
    await asyncio.to_thread(write_llava_7b, folder, None if real else SMALL_SIZES)
    plain, eight = [await measure_quantization(folder, quantization, tokens) for quantization in ("none", "8bit")]
    return {
        "tokens_per_second": {plain["dtype"]: plain["speeds"], "8bit": eight["speeds"]},
        "model_bytes": {plain["dtype"]: plain["model_bytes"], eight["quantization"]: eight["model_bytes"]},
        "memory_bytes": {plain["dtype"]: plain["memory_after_bytes"], eight["quantization"]: eight["memory_after_bytes"]},
        "load_seconds": {plain["dtype"]: plain["load_seconds"], eight["quantization"]: eight["load_seconds"]},
        "conditions": {
            "size": "LLaVA-1.5-7B" if real else "small",
            "device": plain["device"],
            "tokens_each": tokens,
            "questions": "one picture each",
        },
    }


async def measure_quantization(folder: Path, quantization: Quantization, tokens: int) -> dict[str, Any]:
    """One engine with these weights: what it says of itself, and its speeds."""
    options = VlmOptions(str(folder), quantization=quantization, max_rows=max(BATCHES), window_seconds=0.05)
    began = time.perf_counter()
    async with open_executor(EngineSpec(ENGINE, options), ExecutorSettings(), max_in_flight=64, capacity=max(BATCHES)) as executor:
        await executor.ready()
        loaded = round(time.perf_counter() - began, 2)
        await tokens_per_second(executor, 1, 4)
        speeds = {str(size): await tokens_per_second(executor, size, tokens) for size in BATCHES}
        return executor.info | {"speeds": speeds, "load_seconds": loaded}


async def tokens_per_second(executor: Executor, size: int, tokens: int) -> float:
    """One batch of a size. Counted is what was really said: random weights may come to an end early."""
    began = time.perf_counter()
    outcomes = await asyncio.gather(*(executor.run(question) for question in sample_requests(tokens, size)))
    said: int = sum(outcome.result.tokens for outcome in outcomes)
    return round(said / (time.perf_counter() - began), 2)
