"""Cancellation by job id: which tasks of this process work for which job, so that a cancellation stops those and no others."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class CancellableRun:
    """A task that works for a job; `cancelled`: whether the job was cancelled meanwhile."""

    task: asyncio.Task[object] | None = None
    cancelled: bool = False


class CancellationRegistry:
    """The running tasks by job."""

    def __init__(self) -> None:
        self._runs: dict[str, list[CancellableRun]] = {}

    def cancel(self, job_id: str) -> int:
        """Cancel the tasks of a job; returns how many it has."""
        runs = self._runs.get(job_id, [])
        for run in runs:
            if run.task and not run.cancelled:
                run.cancelled = run.task.cancel()
        return len(runs)

    @contextmanager
    def track(self, job_id: str) -> Iterator[CancellableRun]:
        """The current task works for the job inside the block. A cancellation of the job is undone at its end; the task continues."""
        run = CancellableRun(asyncio.current_task())
        self._runs.setdefault(job_id, []).append(run)
        try:
            yield run
        finally:
            if run.cancelled and run.task:
                run.task.uncancel()
            self._runs[job_id].remove(run)
            if not self._runs[job_id]:
                del self._runs[job_id]
