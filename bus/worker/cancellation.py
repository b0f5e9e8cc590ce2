"""Cancel by job id: the tasks at work in this process, so that a control message stops the right one and no other."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class CancellableRun:
    """Work for a job, and whether the job was cancelled meanwhile."""

    task: asyncio.Task[object] | None = None
    cancelled: bool = False


class CancellationRegistry:
    """Which tasks work for which job."""

    def __init__(self) -> None:
        self._runs: dict[str, list[CancellableRun]] = {}

    def cancel(self, job_id: str) -> int:
        """Stop what runs for the job; returns how many runs."""
        at_work = self._runs.get(job_id, [])
        for watched in at_work:
            if watched.task and not watched.cancelled:
                watched.cancelled = watched.task.cancel()
        return len(at_work)

    @contextmanager
    def track(self, job_id: str) -> Iterator[CancellableRun]:
        """The current task works for the job, in between. A cancellation of the job is taken back from it at the end: it goes on."""
        watched = CancellableRun(asyncio.current_task())
        self._runs.setdefault(job_id, []).append(watched)
        try:
            yield watched
        finally:
            if watched.cancelled and watched.task:
                watched.task.uncancel()
            self._runs[job_id].remove(watched)
            if not self._runs[job_id]:
                del self._runs[job_id]
