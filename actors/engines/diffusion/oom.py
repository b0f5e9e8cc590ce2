"""Fallbacks when memory runs out, tried in order before the process gives up.

The error is dropped before a fallback is applied: its traceback would keep the tensors alive that are to be freed.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from actors.engines.process.failures import is_out_of_memory
from actors.engines.process.gpu import free_memory
from actors.engines.process.protocol import MemoryExhausted

T = TypeVar("T")

log = structlog.get_logger()


class OomFallbacks:
    """`row_limit`: rows in one UNet call; `reset` when the device is idle. Slicing stays. `applied_counts`: by name of the fallback."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = self.row_limit = max_rows
        self.applied_counts: Counter[str] = Counter()

    def run_with_fallbacks(self, operation: Callable[[], T], next_fallback: Callable[[], str | None]) -> T:
        """Run `operation`, applying one fallback after another. Raises MemoryExhausted when `next_fallback` has no other."""
        while True:
            result, out_of_memory = run_catching_oom(operation)
            if not out_of_memory:
                return result[0]
            free_memory()
            fallback = next_fallback()
            if fallback is None:
                raise MemoryExhausted("out of memory with every fallback applied that this work has")
            self.applied_counts[fallback] += 1
            log.warning("memory.fallback_applied", fallback=fallback, row_limit=self.row_limit)

    def halve_batch(self, rows: int) -> str | None:
        if min(self.row_limit, rows) <= 1:
            return None
        self.row_limit = min(self.row_limit, rows) // 2
        return f"batch-{self.row_limit}"

    @property
    def active(self) -> tuple[str, ...]:
        """The fallback that applies to UNet calls now."""
        return (f"batch-{self.row_limit}",) if self.row_limit < self.max_rows else ()

    def reset(self) -> None:
        self.row_limit = self.max_rows


def run_catching_oom(operation: Callable[[], T]) -> tuple[list[T], bool]:
    """The result in a list, and False; or an empty list, and True when memory ran out."""
    try:
        return [operation()], False
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return [], True


def enable_attention_slicing(pipeline: Any, applied: set[str]) -> str | None:
    return _apply_once("attention-slicing", applied, lambda: pipeline.enable_attention_slicing(1))


def enable_vae_slicing(pipeline: Any, applied: set[str]) -> str | None:
    sliced = _apply_once("vae-slicing", applied, pipeline.vae.enable_slicing)
    return sliced or (_apply_once("vae-tiling", applied, pipeline.vae.enable_tiling) if supports_vae_tiling(pipeline) else None)


def supports_vae_tiling(pipeline: Any) -> bool:
    """Not with a tiny VAE: it joins its tiles as for a scale of 8, whatever its own scale."""
    scale: int = pipeline.vae_scale_factor
    return scale == getattr(pipeline.vae, "spatial_scale_factor", scale)


def _apply_once(name: str, applied: set[str], apply: Callable[[], None]) -> str | None:
    if name in applied:
        return None
    apply()
    applied.add(name)
    return name
