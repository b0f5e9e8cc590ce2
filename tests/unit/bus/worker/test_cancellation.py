"""`CancellationRegistry`: a cancellation reaches the tasks of its job, and ends with their work."""

import asyncio
from contextlib import suppress

import pytest

from bus.worker.cancellation import CancellationRegistry


async def work(cancellations: CancellationRegistry, job_id: str) -> tuple[bool, int]:
    """Whether the run was cancelled, and how many cancellations its task has left afterwards."""
    with cancellations.track(job_id) as run, suppress(asyncio.CancelledError):
        await asyncio.sleep(5)
    task = asyncio.current_task()
    assert task is not None
    await asyncio.sleep(0)
    return run.cancelled, task.cancelling()


async def test_cancellation_stops_only_tasks_of_job() -> None:
    cancellations = CancellationRegistry()
    first, second, other = (asyncio.create_task(work(cancellations, name)) for name in ("a", "a", "b"))
    await asyncio.sleep(0.01)
    assert cancellations.cancel("a") == 2
    assert cancellations.cancel("a") == 2, "a second cancellation changes nothing"
    assert [await first, await second] == [(True, 0), (True, 0)]
    assert not other.done()
    assert cancellations.cancel("b") == 1
    assert await other == (True, 0)
    assert cancellations.cancel("a") == 0


async def test_foreign_cancellation_is_propagated() -> None:
    """A cancellation by the shutdown is not the job's, and is not undone."""
    cancellations = CancellationRegistry()
    task = asyncio.create_task(work(cancellations, "a"))
    await asyncio.sleep(0.01)
    cancellations.cancel("a")
    task.cancel()
    assert await task == (True, 1)


async def test_cancelled_task_can_still_time_out() -> None:
    cancellations = CancellationRegistry()

    async def work_then_time_out() -> None:
        await work(cancellations, "a")
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)

    task = asyncio.create_task(work_then_time_out())
    await asyncio.sleep(0.01)
    cancellations.cancel("a")
    with pytest.raises(TimeoutError):
        await task
