"""What the executor does with the device seconds that its process reports: they count for each request, and for its delivery."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from bus.observability.device_usage import DeviceUsage, current_usage

MAX_ENDED_REQUESTS = 1024
"""The last ones, of which work may still be reported."""


@dataclass(eq=False)
class RequestCharge:
    """The device seconds of one request, of all its attempts."""

    usage: DeviceUsage = field(default_factory=current_usage)
    device_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.device_seconds += seconds
        self.usage.add(seconds)


class ChargedRequests:
    """The charges by the ids that the process knows. Work may be reported after the end of its request: that of a cancelled one goes on
    until its step ends.
    """

    def __init__(self) -> None:
        self._running: dict[int, RequestCharge] = {}
        self._ended: dict[int, RequestCharge] = {}
        self._reported_at = time.monotonic()

    def submit(self, request_id: int, charge: RequestCharge) -> None:
        if not self._running:
            self._reported_at = time.monotonic()
        self._running[request_id] = charge

    def end(self, request_id: int) -> None:
        self._ended[request_id] = self._running.pop(request_id)
        if len(self._ended) > MAX_ENDED_REQUESTS:
            del self._ended[next(iter(self._ended))]

    def report(self, device_seconds: Mapping[int, float]) -> None:
        """What the process has measured since its last report."""
        self._reported_at = time.monotonic()
        for request_id, seconds in device_seconds.items():
            if charge := self._running.get(request_id) or self._ended.get(request_id):
                charge.add(seconds)

    def end_process(self) -> float:
        """The process has exited: charge the seconds since its last report equally to the requests that it had, and return them."""
        seconds = time.monotonic() - self._reported_at if self._running else 0.0
        for charge in self._running.values():
            charge.add(seconds / len(self._running))
        self._running.clear()
        self._ended.clear()
        return seconds
