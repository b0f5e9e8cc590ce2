"""Where another row in a call stops paying: decided from measured durations. Nothing here knows a model or a device.

A device that one row does not fill takes little longer for two. Once it is full, twice the rows take twice the time, and more of them in
one call only take memory. How full it is depends on rows × tokens, so that a limit found at one size is scaled to every other.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from actors.engines.diffusion.oom import run_catching_oom

LEAST_GAIN = 0.05
"""Twice the rows pay when the time of each falls by at least this share."""
TIMED_CALLS = 8
"""Of each number of rows, after one that is not counted; the shortest counts, because other load only lengthens a call."""
TIMED_SECONDS = 0.3
"""Calls of one number of rows are repeated no further once they took so long: a long call varies little."""

StopReason = Literal["saturated", "all-measured", "time", "memory"]


@dataclass(frozen=True)
class Saturation:
    """`seconds`: of one call, by its rows, for pictures of `tokens` latent tokens. `stopped_by`: why no more rows were measured."""

    tokens: int
    seconds: Mapping[int, float]
    stopped_by: StopReason

    @property
    def row_limit(self) -> int | None:
        """The most rows of a call that still pay at `tokens`, or that fit into memory; None: no limit was found."""
        for rows, more_rows in pairwise(sorted(self.seconds)):
            if not pays(rows, self.seconds[rows], more_rows, self.seconds[more_rows]):
                return rows
        return max(self.seconds, default=1) if self.stopped_by == "memory" else None

    def limit_at(self, tokens: int) -> int | None:
        """The limit for pictures of another size: as many tokens in one call."""
        return None if self.row_limit is None else max(1, self.row_limit * self.tokens // max(1, tokens))

    @property
    def relative_costs(self) -> dict[int, float]:
        """Rows → the duration of a call in calls with one row."""
        return {rows: round(seconds / self.seconds[1], 3) for rows, seconds in sorted(self.seconds.items())}

    def describe(self) -> dict[str, Any]:
        """As JSON, for the information of the engine."""
        costs = {str(rows): cost for rows, cost in self.relative_costs.items()}
        return {"tokens": self.tokens, "row_limit": self.row_limit, "relative_costs": costs, "stopped_by": self.stopped_by}


def pays(rows: int, seconds: float, more_rows: int, more_seconds: float) -> bool:
    """Whether each of `more_rows` takes less time in one call than each of `rows`, by LEAST_GAIN at least."""
    return more_seconds / more_rows <= (1 - LEAST_GAIN) * seconds / rows


def measure_saturation(
    call: Callable[[int], object],
    tokens: int,
    max_rows: int,
    budget_seconds: float,
    expected_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Saturation:
    """Make calls with 1, 2, 4 … rows until another doubling does not pay, is expected to exceed the budget, or takes too much memory.

    `call` makes one call with so many rows and returns when the device has computed it. `expected_seconds`: of the first call.
    """
    seconds: dict[int, float] = {}
    began, expected = clock(), expected_seconds

    def time_rows(rows: int) -> bool:
        """Whether they fit into memory. The shortest duration so far is kept."""
        durations, out_of_memory = run_catching_oom(lambda: time_calls(call, rows, clock))
        if not out_of_memory:
            seconds[rows] = min(durations[0], seconds.get(rows, durations[0]))
        return not out_of_memory

    for rows in doublings(max_rows):
        if clock() - began + 2 * expected > budget_seconds:  # one that is not counted, and one that is
            return Saturation(tokens, seconds, "time")
        if not time_rows(rows):
            return Saturation(tokens, seconds, "memory")
        expected = 2 * seconds[rows]
        if rows > 1 and not pays(rows // 2, seconds[rows // 2], rows, seconds[rows]):
            if clock() - began + 3 * seconds[rows] <= budget_seconds:  # other load may have lengthened all calls of one number of rows
                time_rows(rows // 2)
                time_rows(rows)
            if not pays(rows // 2, seconds[rows // 2], rows, seconds[rows]):
                return Saturation(tokens, seconds, "saturated")
    return Saturation(tokens, seconds, "all-measured")


def doublings(max_rows: int) -> Iterator[int]:
    """1, 2, 4 … up to `max_rows`."""
    rows = 1
    while rows <= max_rows:
        yield rows
        rows *= 2


def time_calls(call: Callable[[int], object], rows: int, clock: Callable[[], float]) -> float:
    """The shortest duration of a few calls; the first, which allocates memory and chooses kernels, does not count."""
    call(rows)
    durations: list[float] = []
    while len(durations) < TIMED_CALLS and sum(durations) < TIMED_SECONDS:
        began = clock()
        call(rows)
        durations.append(clock() - began)
    return min(durations)
