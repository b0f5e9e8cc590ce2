"""Throttled progress: the first step at or past 0, 25, 50, 75 and 90 percent, with the exact percent and the remaining time."""

import asyncio
import math
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from actors.engines.process.protocol import Progressed
from contracts.event import Progress

PROGRESS_PERCENTS = (0, 25, 50, 75, 90)


class ProgressThrottle:
    """Turns step events into reports. The clock starts with step 0; an event without a total, the executor's own, reports nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._remaining_percents = list(PROGRESS_PERCENTS)
        self._started_at = clock()
        self._last_step = -1

    def report_for(self, event: Progressed) -> Progress | None:
        """The report for this step, if one is due. The reported step never decreases, also when an order starts again."""
        if event.step == 0:
            self._started_at = self.clock()
        if not event.total:
            return None
        percent = event.step * 100 // event.total
        due = bool(self._remaining_percents) and percent >= self._remaining_percents[0]
        if event.step <= self._last_step or not (due or event.preview):
            return None
        self._remaining_percents = [value for value in self._remaining_percents if value > percent]
        self._last_step = event.step
        return Progress(
            current_step=event.step,
            total_steps=event.total,
            progress_percent=percent,
            estimated_seconds=self._estimate(event.step, event.total),
            preview=b64encode(event.preview).decode() if event.preview else None,
        )

    def _estimate(self, step: int, total_steps: int) -> int:
        return math.ceil((self.clock() - self._started_at) / step * (total_steps - step)) if step else 0


@asynccontextmanager
async def open_progress_reporter(report: Callable[[Progress], Awaitable[None]]) -> AsyncIterator[Callable[[Progressed], None]]:
    """A callback for step events that reports in the background, in order. All is reported when the block ends without an error."""
    throttle, queue = ProgressThrottle(), asyncio.Queue[Progress | None]()

    def on_step(event: Progressed) -> None:
        if progress := throttle.report_for(event):
            queue.put_nowait(progress)

    async def report_queued() -> None:
        while progress := await queue.get():
            await report(progress)

    task = asyncio.create_task(report_queued())
    try:
        yield on_step
        queue.put_nowait(None)
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
