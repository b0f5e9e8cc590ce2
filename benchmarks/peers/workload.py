"""A run: so many messages of a size, so many in flight. And the count of those that were worked on."""

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bus.settings import BusSettings


@dataclass(frozen=True)
class PeerConfig:
    """Where one end works. `database_url` is None when nothing is kept."""

    queue: str
    amqp_url: str
    store_url: str
    database_url: str | None
    in_flight: int

    @property
    def settings(self) -> BusSettings:
        asked = {"amqp_url": self.amqp_url, "database_url": self.database_url, "publish_timeout_seconds": 600.0}
        return BusSettings.model_validate(asked)


@dataclass(frozen=True)
class Workload:
    """`mode` is `send` (one way) or `ask` (request and reply)."""

    name: str
    mode: str
    count: int
    size: int
    in_flight: int

    @cached_property
    def body(self) -> dict[str, Any]:
        return {"run": self.name, "of": self.count if self.mode == "send" else 0, "pad": "x" * self.size}

    @property
    def encoded_body(self) -> bytes:
        return json.dumps(self.body).encode()


async def run_concurrently(workload: Workload, call: Callable[[], Awaitable[Any]]) -> None:
    """`count` calls, never more than `in_flight` at once."""
    left = workload.count

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    await asyncio.gather(*(caller() for _ in range(workload.in_flight)))


class CompletionCounter:
    """Counts what was worked on, in any thread, and says the time when a run is whole."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def record(self, run: str, expected_count: int) -> None:
        with self._lock:
            self._counts[run] += 1
            whole = self._counts[run] == expected_count
        if whole:
            sys.stdout.write(f"{time.monotonic()}\n")
            sys.stdout.flush()
