"""A round: orders under load, one fault, and the oracle's counts of their outcomes."""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from tests.chaos.attack import longest_silence
from tests.chaos.environment import ChaosEnvironment
from tests.chaos.faults import FAULTS_BEFORE_LOAD, FAULTS_BY_NAME, ORDER_DEADLINES
from tests.chaos.oracle import Oracle

PROMPTS = ["quiet harbour", "quiet dusk", "harbour with reports", "quiet fails", "quiet shaky", "quiet slow"]
"""Most report no progress; one does, one fails permanently, one fails once, one takes longer than the grace period."""

FINISH_TIMEOUT_SECONDS = 240.0
"""A message that was in a delay queue when the broker was killed may come up to three minutes late: RabbitMQ waits that long for a
confirm before it dead-letters the message again."""

MAX_SILENCE_SECONDS = 5.0
"""While hostile messages arrive, no step may be silent for longer between two of its events."""


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
    unrecorded: int
    redelivered: int
    recover_seconds: float
    seconds: float
    hostile: int = 0
    hostile_lost: int = 0
    longest_silence_seconds: float = 0.0
    met: int | None = None
    """How many messages, deliveries or results the fault met; None for a fault that meets whatever there is."""

    @property
    def clean(self) -> bool:
        """Nothing lost, duplicated, unexpected, left over or missing in the ledger, and no order expired unless the round has deadlines.

        A fault that missed shows nothing.
        Under hostile messages also: each of them is dead-lettered with a cause, and every step goes on.
        """
        unexpectedly_expired = self.expired and self.name not in ORDER_DEADLINES
        silent = self.hostile and self.longest_silence_seconds > MAX_SILENCE_SECONDS
        counts = (self.lost, self.duplicated, self.unexpected, self.left_in_queues, self.unrecorded, self.hostile_lost)
        return not any((*counts, unexpectedly_expired, silent, self.missed))

    @property
    def missed(self) -> bool:
        return self.met == 0

    @property
    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


async def play_round(
    environment: ChaosEnvironment,
    fault: str,
    *,
    orders: int,
    per_second: float,
    rng: random.Random,
    finish_seconds: float = FINISH_TIMEOUT_SECONDS,
) -> RoundResult:
    """A third of the orders before the fault, the rest during and after it."""
    met, redelivered = None, environment.count_redelivered()
    oracle, started = Oracle(environment, deadline_seconds=ORDER_DEADLINES.get(fault)), time.monotonic()
    environment.hostile_bodies.clear()
    if fault in FAULTS_BEFORE_LOAD:
        await FAULTS_BY_NAME[fault](environment, rng)
    publishing = asyncio.create_task(oracle.publish(orders, per_second, PROMPTS))
    silence = asyncio.create_task(longest_silence(environment.node.url)) if fault == "hostile-messages" else None
    if silence:
        publishing.add_done_callback(lambda _: silence.cancel())
    await asyncio.sleep(orders / per_second / 3)
    if fault not in FAULTS_BEFORE_LOAD:
        met = await FAULTS_BY_NAME[fault](environment, rng)
    fault_ended, requests = time.monotonic(), len(environment.backend.requests)
    recovery = asyncio.create_task(seconds_to_next_request(environment, requests, fault_ended))
    await publishing
    silence_seconds = await silence if silence else 0.0
    await oracle.wait_until_finished(finish_seconds)
    recovery.cancel()
    outcomes = oracle.outcomes()
    environment.failed_orders += [*outcomes.lost, *outcomes.unexpected, *outcomes.duplicated]
    duplicated = set(outcomes.duplicated) | set(await oracle.find_repeated_runs())
    leftovers = await oracle.count_leftovers()
    unrecorded = await oracle.find_unrecorded()
    environment.failed_orders += unrecorded
    await oracle.close_connection()
    return RoundResult(
        name=fault,
        orders=orders,
        confirmed=len(oracle.confirmed),
        effects=len(oracle.webhook_calls()["complete"]),
        lost=len(outcomes.lost),
        duplicated=len(duplicated),
        unexpected=len(outcomes.unexpected),
        dead_lettered=len(outcomes.dead_lettered),
        expired=len(outcomes.expired),
        repeated_calls=outcomes.repeated_calls,
        left_in_queues=leftovers,
        unrecorded=len(unrecorded),
        redelivered=environment.count_redelivered() - redelivered,
        recover_seconds=round(await result_or_nan(recovery), 2),
        seconds=round(time.monotonic() - started, 1),
        hostile=len(environment.hostile_bodies),
        hostile_lost=len(oracle.unsettled_hostile()),
        longest_silence_seconds=round(silence_seconds, 2),
        met=met,
    )


async def seconds_to_next_request(environment: ChaosEnvironment, request_count: int, fault_ended_at: float) -> float:
    """Seconds from the end of the fault to the next webhook call."""
    while len(environment.backend.requests) == request_count:
        await asyncio.sleep(0.02)
    return time.monotonic() - fault_ended_at


async def result_or_nan(task: "asyncio.Task[float]") -> float:
    return task.result() if task.done() and not task.cancelled() else float("nan")
