"""Cancel by job id: the tasks at work in this process, so that a control message stops the right one and no other."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Watched:
    """Work for a job, and whether the job was cancelled meanwhile."""

    task: asyncio.Task[object] | None = None
    cancelled: bool = False


class Cancellations:
    """Which tasks work for which job."""

    def __init__(self) -> None:
        self._watched: dict[str, list[Watched]] = {}

    def cancel(self, job_id: str) -> int:
        """Stop what runs for the job; returns how many runs."""
        at_work = self._watched.get(job_id, [])
        for watched in at_work:
            if watched.task and not watched.cancelled:
                watched.cancelled = watched.task.cancel()
        return len(at_work)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watched]:
        """The current task works for the job, in between. A cancellation of the job is taken back from it at the end: it goes on."""
        watched = Watched(asyncio.current_task())
        self._watched.setdefault(job_id, []).append(watched)
        try:
            yield watched
        finally:
            if watched.cancelled and watched.task:
                watched.task.uncancel()
            self._watched[job_id].remove(watched)
            if not self._watched[job_id]:
                del self._watched[job_id]
