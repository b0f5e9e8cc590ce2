"""A subscriber of a job that is cancelled does not cut off its calls to the broker, which would close the channel of all subscribers."""

import asyncio
from typing import Any, cast

import pytest

from bus.amqp.subscriptions import JobSubscription


class SlowQueue:
    """Records the calls that ended, each of which takes a moment, and those that were cut off."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.cut_off: list[str] = []

    async def bind(self, exchange: str, key: str) -> None:
        await self._call("bind")

    async def unbind(self, exchange: str, key: str) -> None:
        await self._call("unbind")

    async def _call(self, name: str) -> None:
        self.begun.append(name)
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.cut_off.append(name)
            raise
        self.ended.append(name)


@pytest.mark.parametrize("during", ["bind", "unbind"])
async def test_calls_of_a_cancelled_subscriber_reach_their_end(during: str) -> None:
    queue = SlowQueue()
    subscription = JobSubscription(cast("Any", queue))

    async def follow() -> None:
        async with subscription.subscribe("job-1"):
            pass

    task = asyncio.create_task(follow())
    while during not in queue.begun:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(10):
        while len(queue.ended) + len(queue.cut_off) < 2:
            await asyncio.sleep(0.005)
    assert (queue.ended, queue.cut_off) == (["bind", "unbind"], [])
