"""Rounds: orders under way, a fault among them, and the oracle's word on what became of each."""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from tests.chaos.faults import DEADLINES, FAULTS, IDLE
from tests.chaos.oracle import Oracle
from tests.chaos.site import Site

PROMPTS = ["quiet harbour", "quiet dusk", "harbour with reports", "quiet fails", "quiet shaky", "quiet slow"]
"""Most say nothing on the way; one reports progress, one fails for good, one fails once, one takes longer than the grace."""

END_SECONDS = 240.0
"""A retry that lay on the ladder when the broker was killed comes up to three minutes later: that long RabbitMQ waits for a confirm
before it dead-letters the message again."""


@dataclass(frozen=True)
class Round:
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
        untimely = self.expired and self.name not in DEADLINES
        return not (self.lost or self.duplicated or self.unexpected or self.left_in_queues or untimely)

    @property
    def figures(self) -> dict[str, Any]:
        return dict(vars(self))


async def play(site: Site, fault: str, *, orders: int, per_second: float, chance: random.Random) -> Round:
    """A third of the orders before the fault, the rest during and after it."""
    oracle, started = Oracle(site, deadline_seconds=DEADLINES.get(fault)), time.monotonic()
    if fault in IDLE:
        await FAULTS[fault](site, chance)
    publishing = asyncio.create_task(oracle.publish(orders, per_second, PROMPTS))
    await asyncio.sleep(orders / per_second / 3)
    if fault not in IDLE:
        await FAULTS[fault](site, chance)
    over, heard = time.monotonic(), len(site.backend.heard)
    recovery = asyncio.create_task(first_word(site, heard, over))
    await publishing
    await oracle.until_ended(END_SECONDS)
    recovery.cancel()
    ends = oracle.ends()
    site.suspects += [*ends.lost, *ends.unexpected, *ends.duplicated]
    twice = set(ends.duplicated) | set(await oracle.painted_twice())
    left = await oracle.left_in_queues()
    await oracle.hang_up()
    return Round(
        name=fault,
        orders=orders,
        confirmed=len(oracle.confirmed),
        effects=len(oracle.calls()["complete"]),
        lost=len(ends.lost),
        duplicated=len(twice),
        unexpected=len(ends.unexpected),
        dead_lettered=len(ends.dead_lettered),
        expired=len(ends.expired),
        repeated_calls=ends.repeated_calls,
        left_in_queues=left,
        recover_seconds=round(await value_of(recovery), 2),
        seconds=round(time.monotonic() - started, 1),
    )


async def first_word(site: Site, heard: int, over: float) -> float:
    """Seconds from the fault's end to the next word that the backend hears."""
    while len(site.backend.heard) == heard:
        await asyncio.sleep(0.02)
    return time.monotonic() - over


async def value_of(task: "asyncio.Task[float]") -> float:
    return task.result() if task.done() and not task.cancelled() else float("nan")
