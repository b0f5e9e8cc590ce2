"""What the executor does with the device seconds that its process reports: they count for each request, and for its delivery."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from bus.observability.device_usage import DeviceUsage, current_usage

MAX_REQUESTS = 1024
"""The last requests that are known; a process has fewer at once."""


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
        self._charges: dict[int, RequestCharge] = {}
        self._reported_at = time.monotonic()

    def submit(self, request_id: int, charge: RequestCharge, *, idle: bool) -> None:
        """`idle`: the process has no other request."""
        self._charges[request_id] = charge
        if len(self._charges) > MAX_REQUESTS:
            del self._charges[next(iter(self._charges))]
        if idle:
            self._reported_at = time.monotonic()

    def report(self, device_seconds: Mapping[int, float]) -> None:
        """What the process has measured since its last report."""
        self._reported_at = time.monotonic()
        for request_id, seconds in device_seconds.items():
            if charge := self._charges.get(request_id):
                charge.add(seconds)

    def charge_unreported(self, request_ids: Collection[int]) -> float:
        """The process has exited: charge the seconds since its last report equally to the requests that it had, and return them."""
        if not request_ids:
            return 0.0
        seconds = time.monotonic() - self._reported_at
        self.report(dict.fromkeys(request_ids, seconds / len(request_ids)))
        return seconds
