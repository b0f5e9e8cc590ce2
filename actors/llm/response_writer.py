"""Writes the events of a running response in small groups, and wakes those who wait for them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from actors.llm.response_output import Event, OutputStream
from actors.llm.response_repository import ResponseEnd, ResponseRepository, ResponseRun, numbered
from bus.retry import retry_while_unavailable
from contracts.text import TextDelta
from contracts.wire_model import WireModel

GROUP_SECONDS = 0.05
"""At most so often one response writes: deltas that come faster are one event."""


class EventWriter:
    """`send` takes the deltas of the text step. `wake` is called after each write, as `ResponseWatcher.wake` says."""

    def __init__(self, repository: ResponseRepository, run: ResponseRun, wake: Callable[[str, int | None], None]) -> None:
        self._repository, self._run, self._wake = repository, run, wake
        self.output = OutputStream(run.response_id, run.events)
        self._next_sequence = run.next_sequence
        self._changed, self._stopped = asyncio.Event(), False
        self._task: asyncio.Task[None] | None = None

    async def send(self, delta: WireModel) -> None:
        """Raises CallerGone when the response may not be written any more."""
        assert isinstance(delta, TextDelta)
        if self._task and self._task.done():
            self._task.result()
        self.output.add(delta)
        self._changed.set()

    @asynccontextmanager
    async def write_groups(self) -> AsyncIterator[None]:
        """Write in the background inside the block; at its end all is written."""
        self._task = asyncio.create_task(self._write_groups())
        try:
            yield
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        finally:
            self._stopped = True
            self._changed.set()
            await asyncio.wait([self._task])
            failure = None if self._task.cancelled() else self._task.exception()
        if failure:
            raise failure

    async def _write_groups(self) -> None:
        if self._run.is_new:
            await self.write([{"type": "response.in_progress", "response": self._run.response | {"status": "in_progress"}}])
        while not self._stopped:
            await self._changed.wait()
            self._changed.clear()
            await self.write(self.output.take_events())
            await asyncio.sleep(0 if self._stopped else GROUP_SECONDS)

    async def write(self, events: list[Event]) -> None:
        """Waits while the database is away. Raises CallerGone."""
        if not events:
            return
        first = self._next_sequence
        group = numbered(events, first)
        await retry_while_unavailable(lambda: self._repository.append(self._run, first, group), "database")
        self._next_sequence += len(group)
        self._wake(self._run.response_id, self._next_sequence)

    async def finish(self, events: list[Event], end: ResponseEnd) -> None:
        """Write the last events, and end the response. Raises CallerGone."""
        first = self._next_sequence
        group = numbered([*events, end.event()], first)
        await retry_while_unavailable(lambda: self._repository.finish(self._run, first, group, end, end.items), "database")
        self._wake(self._run.response_id, None)
