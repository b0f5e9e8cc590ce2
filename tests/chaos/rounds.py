"""Rounds: orders under way, a fault among them, and the oracle's word on what became of each."""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from tests.chaos.environment import ChaosEnvironment
from tests.chaos.faults import FAULTS_BEFORE_LOAD, FAULTS_BY_NAME, ORDER_DEADLINES
from tests.chaos.oracle import Oracle

PROMPTS = ["quiet harbour", "quiet dusk", "harbour with reports", "quiet fails", "quiet shaky", "quiet slow"]
"""Most say nothing on the way; one reports progress, one fails for good, one fails once, one takes longer than the grace."""

FINISH_TIMEOUT_SECONDS = 240.0
"""A retry that lay on the ladder when the broker was killed comes up to three minutes later: that long RabbitMQ waits for a confirm
before it dead-letters the message again."""


@dataclass(frozen=True)
class RoundResult:
    name: str
    orders: int
    confirmed: int
    effects: int
    lost: int
    duplicated: int
    unexpected: int
    dead_lettered: int
    expired: int
    repeated_calls: int
    left_in_queues: int
    recover_seconds: float
    seconds: float

    @property
    def clean(self) -> bool:
        """An order that failed has a dead letter, unless its time was over."""
        untimely = self.expired and self.name not in ORDER_DEADLINES
        return not (self.lost or self.duplicated or self.unexpected or self.left_in_queues or untimely)

    @property
    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


async def play_round(environment: ChaosEnvironment, fault: str, *, orders: int, per_second: float, rng: random.Random) -> RoundResult:
    """A third of the orders before the fault, the rest during and after it."""
    oracle, started = Oracle(environment, deadline_seconds=ORDER_DEADLINES.get(fault)), time.monotonic()
    if fault in FAULTS_BEFORE_LOAD:
        await FAULTS_BY_NAME[fault](environment, rng)
    publishing = asyncio.create_task(oracle.publish(orders, per_second, PROMPTS))
    await asyncio.sleep(orders / per_second / 3)
    if fault not in FAULTS_BEFORE_LOAD:
        await FAULTS_BY_NAME[fault](environment, rng)
    over, heard = time.monotonic(), len(environment.backend.requests)
    recovery = asyncio.create_task(seconds_to_next_request(environment, heard, over))
    await publishing
    await oracle.wait_until_finished(FINISH_TIMEOUT_SECONDS)
    recovery.cancel()
    ends = oracle.outcomes()
    environment.failed_orders += [*ends.lost, *ends.unexpected, *ends.duplicated]
    twice = set(ends.duplicated) | set(await oracle.find_repeated_runs())
    left = await oracle.count_leftovers()
    await oracle.close_connection()
    return RoundResult(
        name=fault,
        orders=orders,
        confirmed=len(oracle.confirmed),
        effects=len(oracle.webhook_calls()["complete"]),
        lost=len(ends.lost),
        duplicated=len(twice),
        unexpected=len(ends.unexpected),
        dead_lettered=len(ends.dead_lettered),
        expired=len(ends.expired),
        repeated_calls=ends.repeated_calls,
        left_in_queues=left,
        recover_seconds=round(await result_or_nan(recovery), 2),
        seconds=round(time.monotonic() - started, 1),
    )


async def seconds_to_next_request(environment: ChaosEnvironment, request_count: int, fault_ended_at: float) -> float:
    """Seconds from the fault's end to the next word that the backend hears."""
    while len(environment.backend.requests) == request_count:
        await asyncio.sleep(0.02)
    return time.monotonic() - fault_ended_at


async def result_or_nan(task: "asyncio.Task[float]") -> float:
    return task.result() if task.done() and not task.cancelled() else float("nan")
