"""The time to the first token of questions that share a long system prompt, with the embedded engine's prefix cache and without.

An answer of one token is its first token; nothing is streamed.
"""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from actors.engines.language.embedded_text import EmbeddedTextEngine, open_embedded_text_engine
from actors.engines.language.requests import GenerationRequest, TextModelOptions
from benchmarks.harness import alternate, median_ratio
from benchmarks.text_sides import MAX_ROWS, THREADS

WITH, WITHOUT = SIDES = ("with", "without")
FOLLOWING = 3
"""Questions of a round after the first with its system prompt."""
SYSTEM_CHARS = 1500


async def measure_prefix_cache(model: Path, dtype: str, rounds: int) -> dict[str, Any]:
    """Milliseconds to the first token, medians. `speedup`: without the cache over with it, of the following questions."""
    options = TextModelOptions(str(model), dtype=dtype, max_rows=MAX_ROWS, threads=THREADS)  # type: ignore[arg-type]
    first: dict[str, list[float]] = {side: [] for side in SIDES}
    following: dict[str, list[float]] = {side: [] for side in SIDES}
    cached = 0
    async with AsyncExitStack() as stack:
        engines = {}
        for side, used in {WITH: options, WITHOUT: replace(options, prefix_cache_bytes=0)}.items():
            engines[side] = await stack.enter_async_context(open_embedded_text_engine(used, lambda _: None))
            await first_token_seconds(engines[side], 0, 0)
        for number, side in enumerate(alternate(SIDES, rounds), 1):
            seconds, _ = await first_token_seconds(engines[side], number, 0)
            first[side].append(seconds)
            answers = [await first_token_seconds(engines[side], number, question) for question in range(1, FOLLOWING + 1)]
            following[side].append(median(seconds for seconds, _ in answers))
            cached = max(cached, *(tokens for _, tokens in answers))
    return {
        "first_token_ms": {side: {"first": to_ms(first[side]), "following": to_ms(following[side])} for side in SIDES},
        "speedup": median_ratio(following[WITHOUT], following[WITH]),
        "system_prompt_characters": SYSTEM_CHARS,
        "cached_tokens": cached,
    }


async def first_token_seconds(engine: EmbeddedTextEngine, prompt: int, question: int) -> tuple[float, int]:
    """Of the question after the system prompt of that number; and how many tokens were taken from the cache."""
    system = f"{prompt} is your number. " * SYSTEM_CHARS
    messages = [{"role": "system", "content": system[:SYSTEM_CHARS]}, {"role": "user", "content": f"Question {question}?"}]
    began, cached = time.perf_counter(), 0
    async for chunk in engine.generate(GenerationRequest(messages, 1, 0, 1), None):
        cached = chunk.cached_tokens
    return time.perf_counter() - began, cached


def to_ms(seconds: Sequence[float]) -> float:
    return round(median(seconds) * 1000, 1)
