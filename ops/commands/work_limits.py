"""Limits of time and memory for work on files of unknown origin, in the main thread of a command."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

REPEAT_SECONDS = 5.0
"""The timer fires again, so that code that catches every exception does not go on for ever."""


@contextmanager
def limited_work(seconds: float, memory_bytes: int) -> Iterator[None]:
    """Raises TimeoutError after `seconds`, and MemoryError for more than `memory_bytes` beyond what the process has mapped so far."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"it takes longer than {seconds:g} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (lower_limit(mapped_bytes() + memory_bytes, limits[0]), limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def mapped_bytes() -> int:
    """The address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def lower_limit(wanted: int, present: int) -> int:
    return wanted if present == resource.RLIM_INFINITY else min(wanted, present)
