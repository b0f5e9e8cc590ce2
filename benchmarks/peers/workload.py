"""A workload: a number of messages of a size, so many in flight; and the counter of completed messages."""

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
    """The queue and services of a sender or worker. `database_url` is None where no outcomes are stored."""

    queue: str
    amqp_url: str
    store_url: str
    database_url: str | None
    in_flight: int

    @property
    def settings(self) -> BusSettings:
        values = {"amqp_url": self.amqp_url, "database_url": self.database_url, "publish_timeout_seconds": 600.0}
        return BusSettings.model_validate(values)


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
    """`count` calls, at most `in_flight` at once."""
    remaining = workload.count

    async def call_repeatedly() -> None:
        nonlocal remaining
        while remaining > 0:
            remaining -= 1
            await call()

    await asyncio.gather(*(call_repeatedly() for _ in range(workload.in_flight)))


class CompletionCounter:
    """Counts completed messages, in any thread, and prints the time at which a workload is complete."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def record(self, run: str, expected_count: int) -> None:
        with self._lock:
            self._counts[run] += 1
            complete = self._counts[run] == expected_count
        if complete:
            sys.stdout.write(f"{time.monotonic()}\n")
            sys.stdout.flush()
