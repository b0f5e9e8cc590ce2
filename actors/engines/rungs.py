"""Out of memory: what is tried, in order, before the process gives up. The error is long gone when a rung is climbed: its traceback
would keep the very tensors alive that must go."""

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from actors.engines.protocol import MemoryExhausted

T = TypeVar("T")

log = structlog.get_logger()


def out_of_memory(error: BaseException) -> bool:
    """CUDA's own error, Python's, and what torch says when a CPU allocation fails."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error).lower() for words in ("out of memory", "can't allocate memory"))


class Rungs:
    """`limit`: rows in one UNet call. It recovers when the device falls idle; slicing stays."""

    def __init__(self, most: int) -> None:
        self.most = self.limit = most
        self.climbed: Counter[str] = Counter()

    def try_hard(self, work: Callable[[], T], climb: Callable[[], str | None]) -> T:
        """Do the work, climbing rung after rung. Raises MemoryExhausted when `climb` knows no other."""
        while True:
            result, short = attempt(work)
            if not short:
                return result[0]
            free_memory()
            rung = climb()
            if rung is None:
                raise MemoryExhausted("every rung was tried: smaller batch, slicing")
            self.climbed[rung] += 1
            log.warning("memory.short", rung=rung, limit=self.limit)

    def halve(self, rows: int) -> str | None:
        if min(self.limit, rows) <= 1:
            return None
        self.limit = min(self.limit, rows) // 2
        return f"batch-{self.limit}"

    @property
    def standing(self) -> tuple[str, ...]:
        """The rung that calls to the UNet stand on now."""
        return (f"batch-{self.limit}",) if self.limit < self.most else ()

    def recover(self) -> None:
        self.limit = self.most


def attempt(work: Callable[[], T]) -> tuple[list[T], bool]:
    try:
        return [work()], False
    except Exception as error:
        if not out_of_memory(error):
            raise
    return [], True


def free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def slice_attention(pipeline: Any, done: set[str]) -> str | None:
    return _once("attention-slicing", done, lambda: pipeline.enable_attention_slicing(1))


def slice_vae(pipeline: Any, done: set[str]) -> str | None:
    sliced = _once("vae-slicing", done, pipeline.vae.enable_slicing)
    return sliced or (_once("vae-tiling", done, pipeline.vae.enable_tiling) if tileable(pipeline) else None)


def tileable(pipeline: Any) -> bool:
    """A tiny VAE puts its tiles together as if it scaled by eight, whatever its own scale."""
    step: int = pipeline.vae_scale_factor
    return step == getattr(pipeline.vae, "spatial_scale_factor", step)


def _once(name: str, done: set[str], act: Callable[[], None]) -> str | None:
    if name in done:
        return None
    act()
    done.add(name)
    return name
