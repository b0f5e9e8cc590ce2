"""Streamed replies: in order, complete or failed, and cancelled when nobody receives them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from bus.actor import Actor, Context
from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import ReplyFault, ReplyTimeout, RequestClient, open_request_client
from bus.settings import BusSettings
from contracts.text import TextDelta
from tests.support.broker_client import Echo, Echoed, StartWorker, echo_actor, wait_until


@pytest.fixture
async def requests(bus_settings: BusSettings) -> AsyncIterator[RequestClient]:
    async with open_publisher(bus_settings) as publisher, open_request_client(publisher) as client:
        yield client


def streaming_actor(numbers: list[int], *, count: int | None = None, **limits: Any) -> Actor:
    """An actor that sends these numbers as deltas; its result claims `count` deltas (default: as many as it sent)."""

    async def send(command: Echo, context: Context) -> Echoed:
        assert context.send_delta
        for number in numbers:
            await context.send_delta(TextDelta(sequence=number, delta=f"{number} "))
        return Echoed.model_validate({"text": "done", "deltas": len(numbers) if count is None else count})

    return echo_actor(send, **limits)


class EndlessStream:
    """An actor that sends deltas until it is stopped."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.actor = echo_actor(self.handle, timeout_seconds=30)

    async def handle(self, command: Echo, context: Context) -> Echoed:
        assert context.send_delta
        try:
            for number in range(1_000_000):
                await context.send_delta(TextDelta(sequence=number, delta="."))
        finally:
            self.ended.set()
        return Echoed(text="done")


async def test_concurrent_streams_are_ordered_and_end_with_result(start_worker: StartWorker, requests: RequestClient) -> None:
    actor = streaming_actor(list(range(300)), prefetch=8)

    async def receive() -> list[str]:
        chunks = [chunk async for chunk in requests.stream(actor.step, {"text": "x"}, seconds=20)]
        assert (chunks[-1].final, chunks[-1].body["text"]) == (True, "done")
        return [chunk.body["delta"] for chunk in chunks[:-1]]

    async with start_worker(actor):
        received = await asyncio.gather(*(receive() for _ in range(8)))
    assert received == [[f"{number} " for number in range(300)]] * 8
    assert requests.pending_count == 0


@pytest.mark.parametrize(("numbers", "count"), [([0, 1, 3], None), ([0, 1, 0], None), ([0, 1, 2], 4)])
async def test_missing_or_repeated_delta_is_stream_gap(
    start_worker: StartWorker, requests: RequestClient, numbers: list[int], count: int | None
) -> None:
    actor = streaming_actor(numbers, count=count)
    async with start_worker(actor):
        with pytest.raises(ReplyFault) as raised:
            _ = [chunk async for chunk in requests.stream(actor.step, {"text": "x"}, seconds=10)]
    assert raised.value.fault.code == "stream-broken"


async def test_closed_stream_cancels_job(start_worker: StartWorker, requests: RequestClient) -> None:
    endless = EndlessStream()
    async with start_worker(endless.actor):
        async with aclosing(requests.stream(endless.actor.step, {"text": "x"}, seconds=30)) as chunks:
            async for chunk in chunks:
                if chunk.body["sequence"] == 10:
                    break
        await asyncio.wait_for(endless.ended.wait(), 5)
    assert requests.pending_count == 0


async def test_stream_to_missing_reply_queue_cancels_job(start_worker: StartWorker, bus_settings: BusSettings) -> None:
    """No cancellation is published: the actor notices that the reply queue is gone."""
    endless = EndlessStream()
    async with start_worker(endless.actor):
        async with open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
            chunks = requests.stream(endless.actor.step, {"text": "x"}, seconds=30)
            await anext(chunks)
            requests.cancel = ignore_job  # type: ignore[method-assign, assignment]
        await asyncio.wait_for(endless.ended.wait(), 5)
        await chunks.aclose()
    assert endless.ended.is_set(), "the actor went on"


async def ignore_job(job_id: str) -> None:
    """Stands for a client that died before it could publish a cancellation."""


async def test_stream_timeout_names_and_cancels_job(start_worker: StartWorker, requests: RequestClient) -> None:
    """The actor goes on at the deadline: else its fault may arrive before the caller's time is up."""
    endless = EndlessStream()
    async with start_worker(replace(endless.actor, enforce_deadline=False)):
        with pytest.raises(ReplyTimeout):
            async for _ in requests.stream(endless.actor.step, {"text": "x"}, seconds=0.5):
                pass
        await wait_until(lambda: asyncio.sleep(0, endless.ended.is_set()), 5)
