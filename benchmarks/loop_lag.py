"""The lag of the event loop: how long a heartbeat, a cancel or an ack would wait."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PROBE_SECONDS = 0.005


@asynccontextmanager
async def open_lag_probe() -> AsyncIterator[list[float]]:
    """Yields a growing list of lags: the seconds by which a timer of 5 ms was late."""
    lags: list[float] = []

    async def probe() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(PROBE_SECONDS)
            lags.append(time.perf_counter() - before - PROBE_SECONDS)

    task = asyncio.create_task(probe())
    try:
        yield lags
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def lag_quantiles(lags: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(lags)
    return {
        "p50": round(ordered[len(ordered) // 2] * 1000, 3),
        "p99": round(ordered[len(ordered) * 99 // 100] * 1000, 3),
        "max": round(ordered[-1] * 1000, 3),
    }
