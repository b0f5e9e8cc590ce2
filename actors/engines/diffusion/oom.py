"""Out of memory: what is tried, in order, before the process gives up. The error is long gone when a rung is climbed: its traceback
would keep the very tensors alive that must go."""

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from actors.engines.process.protocol import MemoryExhausted

T = TypeVar("T")

log = structlog.get_logger()


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own error, Python's, and what torch says when a CPU allocation fails."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error).lower() for words in ("out of memory", "can't allocate memory"))


class OomFallbacks:
    """`limit`: rows in one UNet call. It recovers when the device falls idle; slicing stays."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = self.row_limit = max_rows
        self.applied_counts: Counter[str] = Counter()

    def run_with_fallbacks(self, work: Callable[[], T], next_fallback: Callable[[], str | None]) -> T:
        """Do the work, climbing rung after rung. Raises MemoryExhausted when `climb` knows no other."""
        while True:
            result, short = run_catching_oom(work)
            if not short:
                return result[0]
            free_memory()
            rung = next_fallback()
            if rung is None:
                raise MemoryExhausted("every rung was tried: smaller batch, slicing")
            self.applied_counts[rung] += 1
            log.warning("memory.short", rung=rung, limit=self.row_limit)

    def halve_batch(self, rows: int) -> str | None:
        if min(self.row_limit, rows) <= 1:
            return None
        self.row_limit = min(self.row_limit, rows) // 2
        return f"batch-{self.row_limit}"

    @property
    def active(self) -> tuple[str, ...]:
        """The rung that calls to the UNet stand on now."""
        return (f"batch-{self.row_limit}",) if self.row_limit < self.max_rows else ()

    def reset(self) -> None:
        self.row_limit = self.max_rows


def run_catching_oom(work: Callable[[], T]) -> tuple[list[T], bool]:
    try:
        return [work()], False
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return [], True


def free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def enable_attention_slicing(pipeline: Any, applied: set[str]) -> str | None:
    return _apply_once("attention-slicing", applied, lambda: pipeline.enable_attention_slicing(1))


def enable_vae_slicing(pipeline: Any, applied: set[str]) -> str | None:
    sliced = _apply_once("vae-slicing", applied, pipeline.vae.enable_slicing)
    return sliced or (_apply_once("vae-tiling", applied, pipeline.vae.enable_tiling) if supports_vae_tiling(pipeline) else None)


def supports_vae_tiling(pipeline: Any) -> bool:
    """A tiny VAE puts its tiles together as if it scaled by eight, whatever its own scale."""
    step: int = pipeline.vae_scale_factor
    return step == getattr(pipeline.vae, "spatial_scale_factor", step)


def _apply_once(name: str, applied: set[str], apply: Callable[[], None]) -> str | None:
    if name in applied:
        return None
    apply()
    applied.add(name)
    return name
