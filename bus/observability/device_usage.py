"""The device seconds of one delivery: its engines add what they measure, and the worker publishes the sum with the outcome.

The engines are called deep inside a handler, so the sum is in a context variable, like the headers that a request propagates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from bus.observability import metrics


@dataclass(eq=False)
class DeviceUsage:
    """`seconds`: None until an engine has measured any. `step`: the label of the metric; empty outside a delivery, which has none.

    What is added after the delivery has ended, as for a request that is cancelled during a step, is in the metric only.
    """

    step: str = ""
    seconds: float | None = None

    @property
    def rounded_seconds(self) -> float | None:
        """For messages: microseconds are enough."""
        return None if self.seconds is None else round(self.seconds, 6)

    def add(self, seconds: float) -> None:
        self.seconds = (self.seconds or 0.0) + seconds
        if self.step:
            metrics.record_device_seconds(self.step, seconds)


_USAGE: ContextVar[DeviceUsage | None] = ContextVar("device_usage", default=None)


def current_usage() -> DeviceUsage:
    """That of the delivery whose handler calls; outside a handler a new one, which nobody reads."""
    return _USAGE.get() or DeviceUsage()


@contextmanager
def measure_usage(step: str, earlier_seconds: float = 0.0) -> Iterator[DeviceUsage]:
    """The usage of the handler that runs in the block, after that of the earlier attempts of its message."""
    usage = DeviceUsage(step, earlier_seconds or None)
    token = _USAGE.set(usage)
    try:
        yield usage
    finally:
        _USAGE.reset(token)
