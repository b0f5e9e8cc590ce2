"""The device seconds of requests: the time in which a model process works, divided among the requests for which it works.

Where two threads work at once, each moment counts once and is divided between them. So the sum over all requests is the busy time: that in
which at least one thread works for a request. Time without a request, such as for loading the process, is nobody's.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class DeviceTime:
    """Measures blocks of work. On a GPU a block ends when the device has done what was submitted in it."""

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._device = clock, device
        self._lock = threading.Lock()
        self._shares: dict[int, list[Mapping[int, float]]] = defaultdict(list)
        """By thread: the blocks that it is in. The innermost is charged."""
        self._settled_at = 0.0
        self._busy_seconds = 0.0
        self._charged: dict[int, float] = defaultdict(float)

    @contextmanager
    def work(self, shares: Mapping[int, float]) -> Iterator[None]:
        """Charge the time of the block to requests in proportion to `shares`, by request id. Without shares nothing changes: the time is
        that of the surrounding block, if there is one.
        """
        if not sum(shares.values()):
            yield
            return
        stack = self._enter(shares)
        try:
            yield
            self._wait_for_device()
        finally:
            with self._lock:
                self._settle()
                stack.pop()

    def work_equally(self, request_ids: Collection[int]) -> Any:
        """`work` with equal shares. An id that is given twice has two."""
        shares: dict[int, float] = defaultdict(float)
        for request_id in request_ids:
            shares[request_id] += 1
        return self.work(shares)

    def take(self) -> tuple[float, dict[int, float]]:
        """The busy seconds since the last call, and what was charged to each request."""
        with self._lock:
            self._settle()
            busy_seconds, charged = self._busy_seconds, dict(self._charged)
            self._busy_seconds = 0.0
            self._charged.clear()
        return busy_seconds, charged

    def _enter(self, shares: Mapping[int, float]) -> list[Mapping[int, float]]:
        with self._lock:
            self._settle()
            stack = self._shares[threading.get_ident()]
            stack.append(shares)
        return stack

    def _settle(self) -> None:
        """Charge the time since the last change to the blocks that ran in it."""
        now = self._clock()
        running = [stack[-1] for stack in self._shares.values() if stack]
        if running:
            seconds = now - self._settled_at
            self._busy_seconds += seconds
            for shares in running:
                seconds_per_share = seconds / len(running) / sum(shares.values())
                for request_id, share in shares.items():
                    self._charged[request_id] += share * seconds_per_share
        self._settled_at = now

    def _wait_for_device(self) -> None:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.current_stream(self._device).synchronize()
