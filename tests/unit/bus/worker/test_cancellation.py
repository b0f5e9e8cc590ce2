"""A job's cancellation reaches the tasks that work for it, and is over when their work is."""

import asyncio
from contextlib import suppress

import pytest

from bus.worker.cancellation import CancellationRegistry


async def work(cancellations: CancellationRegistry, job_id: str) -> tuple[bool, int]:
    """Whether it was cancelled, and how many cancellations its task still has before it after that."""
    with cancellations.track(job_id) as watched, suppress(asyncio.CancelledError):
        await asyncio.sleep(5)
    task = asyncio.current_task()
    assert task is not None
    await asyncio.sleep(0)
    return watched.cancelled, task.cancelling()


async def test_cancellation_stops_only_tasks_of_job() -> None:
    cancellations = CancellationRegistry()
    ours, also_ours, other = (asyncio.create_task(work(cancellations, name)) for name in ("a", "a", "b"))
    await asyncio.sleep(0.01)
    assert cancellations.cancel("a") == 2
    assert cancellations.cancel("a") == 2, "and once is enough"
    assert [await ours, await also_ours] == [(True, 0), (True, 0)]
    assert not other.done()
    assert cancellations.cancel("b") == 1
    assert await other == (True, 0)
    assert cancellations.cancel("a") == 0


async def test_foreign_cancellation_is_propagated() -> None:
    """As when the process leaves: it is not the job's, and is not taken back."""
    cancellations = CancellationRegistry()
    task = asyncio.create_task(work(cancellations, "a"))
    await asyncio.sleep(0.01)
    cancellations.cancel("a")
    task.cancel()
    assert await task == (True, 1)


async def test_cancelled_task_can_still_time_out() -> None:
    cancellations = CancellationRegistry()

    async def afterwards() -> None:
        await work(cancellations, "a")
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)

    task = asyncio.create_task(afterwards())
    await asyncio.sleep(0.01)
    cancellations.cancel("a")
    with pytest.raises(TimeoutError):
        await task
