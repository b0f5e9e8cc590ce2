"""Progress worth telling: the first step at or past 0, 25, 50, 75 and 90 percent, with the real percent and the time still to go."""

import asyncio
import math
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from actors.engines.protocol import Advanced
from contracts.event import Progress

MILESTONES = (0, 25, 50, 75, 90)


class Milestones:
    """Steps in, reports out. `total` is the order's own count of steps. The clock starts with step 0."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.clock = total, clock
        self._left = list(MILESTONES)
        self._began = clock()
        self._last = -1

    def take(self, event: Advanced) -> Progress | None:
        """What is to be told about this step; None: nothing. An order that begins anew is not told backwards."""
        if event.step == 0:
            self._began = self.clock()
        percent = event.step * 100 // self.total
        due = bool(self._left) and percent >= self._left[0]
        if event.step <= self._last or not (due or event.preview):
            return None
        self._left = [milestone for milestone in self._left if milestone > percent]
        self._last = event.step
        return Progress(
            current_step=event.step,
            total_steps=self.total,
            progress_percent=percent,
            estimated_seconds=self._estimate(event.step),
            preview=b64encode(event.preview).decode() if event.preview else None,
        )

    def _estimate(self, step: int) -> int:
        return math.ceil((self.clock() - self._began) / step * (self.total - step)) if step else 0


@asynccontextmanager
async def open_milestones(total: int, report: Callable[[Progress], Awaitable[None]]) -> AsyncIterator[Callable[[Advanced], None]]:
    """A listener for steps that reports in order, beside the work. All has been reported when the block is left in peace."""
    milestones, due = Milestones(total), asyncio.Queue[Progress | None]()

    def on_step(event: Advanced) -> None:
        if progress := milestones.take(event):
            due.put_nowait(progress)

    async def tell() -> None:
        while progress := await due.get():
            await report(progress)

    teller = asyncio.create_task(tell())
    try:
        yield on_step
        due.put_nowait(None)
        await teller
    finally:
        teller.cancel()
        await asyncio.gather(teller, return_exceptions=True)
