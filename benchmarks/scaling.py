"""`atelier bench scaling`: the replicas that an arrival rate and a maximum wait need, by simulating one queue with measured service times.

Orders arrive at random (Poisson); the first free slot takes the oldest; service times are drawn from those that were measured.
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
    """Seconds of waiting in the queue with a number of replicas. `busy`: the share of time in which a slot works."""

    replicas: int
    mean_wait: float
    p95_wait: float
    busy: float


def bench(arguments: Namespace) -> int:
    times = read_service_times(arguments)
    replicas = required_replicas(times, rate=arguments.rate, wait=arguments.wait, slots=arguments.slots)
    forecasts = [simulate(times, rate=arguments.rate, replicas=replicas + more, slots=arguments.slots) for more in range(3)]
    if arguments.json:
        figures = {"rate": arguments.rate, "wait": arguments.wait, "slots": arguments.slots, "replicas": replicas}
        sys.stdout.write(json.dumps(figures | {"foretold": [asdict(forecast) for forecast in forecasts]}, indent=2) + "\n")
        return 0
    sys.stdout.write(f"{replicas} replicas: 95% of orders wait at most {arguments.wait:g} s at {arguments.rate:g} orders per second\n")
    for forecast in forecasts:
        waits = f"mean wait {forecast.mean_wait:.2f} s, p95 {forecast.p95_wait:.2f} s"
        sys.stdout.write(f"  {forecast.replicas:4} replicas: {waits}, {forecast.busy:.0%} busy\n")
    return 0


def read_service_times(arguments: Namespace) -> list[float]:
    """From a file with one number a line (a column of `atelier_step_seconds`), else one time for all."""
    if not arguments.times:
        return [arguments.seconds]
    return [float(line) for line in arguments.times.read_text().split()]


def required_replicas(times: Sequence[float], *, rate: float, wait: float, slots: int = 1) -> int:
    """The fewest replicas with which 95% of orders wait no longer than `wait` seconds."""
    replicas = max(1, -int(-rate * mean(times) // slots))  # with fewer the queue grows without end
    while simulate(times, rate=rate, replicas=replicas, slots=slots).p95_wait > wait and replicas < MAX_REPLICAS:
        replicas += 1
    return replicas


def simulate(
    times: Sequence[float], *, rate: float, replicas: int, slots: int = 1, orders: int = SIMULATED_ORDERS, seed: int = 1
) -> QueueForecast:
    rng = random.Random(seed)  # noqa: S311
    free = [0.0] * (replicas * slots)
    now, busy_seconds, waits = 0.0, 0.0, []
    for _ in range(orders):
        now += rng.expovariate(rate)
        start = max(now, heapq.heappop(free))
        seconds = rng.choice(times)
        heapq.heappush(free, start + seconds)
        waits.append(start - now)
        busy_seconds += seconds
    waits.sort()
    return QueueForecast(replicas, mean(waits), waits[int(0.95 * orders)], min(1.0, busy_seconds / (max(free) * replicas * slots)))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
