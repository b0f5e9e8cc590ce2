"""A reply in parts: in order, whole or not at all, and ended when nobody listens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
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
    async with open_publisher(bus_settings) as outbox, open_request_client(outbox) as opened:
        yield opened


def streaming_actor(numbers: list[int], *, told: int | None = None, **limits: Any) -> Actor:
    """An actor that says these numbers as deltas, then that it said `told`."""

    async def speak(command: Echo, context: Context) -> Echoed:
        assert context.send_delta
        for number in numbers:
            await context.send_delta(TextDelta(sequence=number, delta=f"{number} "))
        return Echoed.model_validate({"text": "done", "deltas": len(numbers) if told is None else told})

    return echo_actor(speak, **limits)


class EndlessStream:
    """An actor that speaks until it is stopped."""

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

    async def listen() -> list[str]:
        pieces = [piece async for piece in requests.stream(actor.step, {"text": "x"}, seconds=20)]
        assert (pieces[-1].final, pieces[-1].body["text"]) == (True, "done")
        return [piece.body["delta"] for piece in pieces[:-1]]

    async with start_worker(actor):
        heard = await asyncio.gather(*(listen() for _ in range(8)))
    assert heard == [[f"{number} " for number in range(300)]] * 8
    assert requests.pending_count == 0


@pytest.mark.parametrize(("numbers", "told"), [([0, 1, 3], None), ([0, 1, 0], None), ([0, 1, 2], 4)])
async def test_missing_or_repeated_delta_is_stream_gap(
    start_worker: StartWorker, requests: RequestClient, numbers: list[int], told: int | None
) -> None:
    actor = streaming_actor(numbers, told=told)
    async with start_worker(actor):
        with pytest.raises(ReplyFault) as broken:
            _ = [piece async for piece in requests.stream(actor.step, {"text": "x"}, seconds=10)]
    assert broken.value.fault.code == "stream-broken"


async def test_closed_stream_cancels_job(start_worker: StartWorker, requests: RequestClient) -> None:
    endless = EndlessStream()
    async with start_worker(endless.actor):
        async with aclosing(requests.stream(endless.actor.step, {"text": "x"}, seconds=30)) as pieces:
            async for piece in pieces:
                if piece.body["sequence"] == 10:
                    break
        await asyncio.wait_for(endless.ended.wait(), 5)


async def test_stream_to_dead_listener_cancels_job(start_worker: StartWorker, bus_settings: BusSettings) -> None:
    """Nobody said that it is to be cancelled: its reply queue is gone, that is all."""
    endless = EndlessStream()
    async with start_worker(endless.actor):
        async with open_publisher(bus_settings) as outbox, open_request_client(outbox) as requests:
            heard = requests.stream(endless.actor.step, {"text": "x"}, seconds=30)
            await anext(heard)
            requests.cancel = ignore_job  # type: ignore[method-assign, assignment]
        await asyncio.wait_for(endless.ended.wait(), 5)
        await heard.aclose()


async def ignore_job(job_id: str) -> None:
    """It died before it could."""


async def test_stream_timeout_names_and_cancels_job(start_worker: StartWorker, requests: RequestClient) -> None:
    endless = EndlessStream()
    async with start_worker(endless.actor):
        with pytest.raises(ReplyTimeout):
            async for _ in requests.stream(endless.actor.step, {"text": "x"}, seconds=0.5):
                pass
        await wait_until(lambda: asyncio.sleep(0, endless.ended.is_set()), 5)
