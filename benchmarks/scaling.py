"""`atelier bench scaling`: from measured service times to replicas, for a given arrival rate and wait. A simulation of one queue.

Orders come at random (Poisson); the first free slot takes the oldest; service times are drawn from those that were measured.
"""

import heapq
import json
import random
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass

SIMULATED_ORDERS = 20_000
MAX_REPLICAS = 4096


@dataclass(frozen=True)
class QueueForecast:
    """Seconds of waiting in the queue, with so many replicas. `busy`: the share of time that a slot works."""

    replicas: int
    mean_wait: float
    p95_wait: float
    busy: float


def bench(arguments: Namespace) -> int:
    times = read_service_times(arguments)
    least = required_replicas(times, rate=arguments.rate, wait=arguments.wait, slots=arguments.slots)
    near = [simulate(times, rate=arguments.rate, replicas=least + more, slots=arguments.slots) for more in range(3)]
    if arguments.json:
        told = {"rate": arguments.rate, "wait": arguments.wait, "slots": arguments.slots, "replicas": least}
        sys.stdout.write(json.dumps(told | {"foretold": [asdict(one) for one in near]}, indent=2) + "\n")
        return 0
    sys.stdout.write(f"{least} replicas keep 95 of 100 orders waiting at most {arguments.wait:g} s at {arguments.rate:g} orders a second\n")
    for one in near:
        sys.stdout.write(f"  {one.replicas:4} replicas: mean wait {one.mean_wait:.2f} s, p95 {one.p95_wait:.2f} s, {one.busy:.0%} busy\n")
    return 0


def read_service_times(arguments: Namespace) -> list[float]:
    """From a file with one number a line (a column of `atelier_step_seconds`), else one time for all."""
    if not arguments.times:
        return [arguments.seconds]
    return [float(line) for line in arguments.times.read_text().split()]


def required_replicas(times: Sequence[float], *, rate: float, wait: float, slots: int = 1) -> int:
    """The fewest with which 95 of 100 orders wait no longer than `wait` seconds."""
    replicas = max(1, -int(-rate * mean(times) // slots))  # fewer would never catch up
    while simulate(times, rate=rate, replicas=replicas, slots=slots).p95_wait > wait and replicas < MAX_REPLICAS:
        replicas += 1
    return replicas


def simulate(
    times: Sequence[float], *, rate: float, replicas: int, slots: int = 1, orders: int = SIMULATED_ORDERS, seed: int = 1
) -> QueueForecast:
    chance = random.Random(seed)  # noqa: S311
    free = [0.0] * (replicas * slots)
    now, worked, waits = 0.0, 0.0, []
    for _ in range(orders):
        now += chance.expovariate(rate)
        begins = max(now, heapq.heappop(free))
        seconds = chance.choice(times)
        heapq.heappush(free, begins + seconds)
        waits.append(begins - now)
        worked += seconds
    waits.sort()
    return QueueForecast(replicas, mean(waits), waits[int(0.95 * orders)], min(1.0, worked / (max(free) * replicas * slots)))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
