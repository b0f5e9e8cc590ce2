"""Cancel by job id: the tasks at work in this process, so that a control message stops the right one and no other."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Cancellations:
    """Which tasks work for which job, and which jobs were cancelled while at work."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[asyncio.Task[object]]] = {}
        self._cancelled: set[asyncio.Task[object]] = set()

    def cancel(self, job_id: str) -> int:
        """Stop what runs for the job; returns how many runs."""
        tasks = self._tasks.get(job_id, set())
        for task in tasks:
            self._cancelled.add(task)
            task.cancel()
        return len(tasks)

    def hit(self, task: asyncio.Task[object]) -> bool:
        return task in self._cancelled

    @contextmanager
    def watch(self, job_id: str, task: asyncio.Task[object]) -> Iterator[None]:
        self._tasks.setdefault(job_id, set()).add(task)
        try:
            yield
        finally:
            self._tasks[job_id].discard(task)
            self._cancelled.discard(task)
            if not self._tasks[job_id]:
                del self._tasks[job_id]
