"""A reply in parts: in order, whole or not at all, and ended when nobody listens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from bus.actor import Actor, Context
from bus.outbox import open_outbox
from bus.request_reply import ReplyFault, ReplyTimeout, Requests, open_requests
from bus.settings import BusSettings
from contracts.text import TextDelta
from tests.integration.conftest import Echo, Echoed, Workshop, echo_actor, soon


@pytest.fixture
async def requests(bus_settings: BusSettings) -> AsyncIterator[Requests]:
    async with open_outbox(bus_settings) as outbox, open_requests(outbox) as opened:
        yield opened


def speaker(numbers: list[int], *, told: int | None = None, **limits: Any) -> Actor:
    """An actor that says these numbers as deltas, then that it said `told`."""

    async def speak(command: Echo, context: Context) -> Echoed:
        assert context.say
        for number in numbers:
            await context.say(TextDelta(sequence=number, delta=f"{number} "))
        return Echoed.model_validate({"text": "done", "deltas": len(numbers) if told is None else told})

    return echo_actor(speak, **limits)


class Endless:
    """An actor that speaks until it is stopped."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.actor = echo_actor(self.speak, timeout_seconds=30)

    async def speak(self, command: Echo, context: Context) -> Echoed:
        assert context.say
        try:
            for number in range(1_000_000):
                await context.say(TextDelta(sequence=number, delta="."))
        finally:
            self.ended.set()
        return Echoed(text="done")


async def test_many_streams_at_once_keep_their_order_and_end_with_the_result(workshop: Workshop, requests: Requests) -> None:
    actor = speaker(list(range(300)), prefetch=8)

    async def listen() -> list[str]:
        pieces = [piece async for piece in requests.stream(actor.step, {"text": "x"}, seconds=20)]
        assert (pieces[-1].final, pieces[-1].body["text"]) == (True, "done")
        return [piece.body["delta"] for piece in pieces[:-1]]

    async with workshop(actor):
        heard = await asyncio.gather(*(listen() for _ in range(8)))
    assert heard == [[f"{number} " for number in range(300)]] * 8
    assert requests.waiting == 0


@pytest.mark.parametrize(("numbers", "told"), [([0, 1, 3], None), ([0, 1, 0], None), ([0, 1, 2], 4)])
async def test_a_delta_that_is_missing_or_comes_twice_is_a_fault(
    workshop: Workshop, requests: Requests, numbers: list[int], told: int | None
) -> None:
    actor = speaker(numbers, told=told)
    async with workshop(actor):
        with pytest.raises(ReplyFault) as broken:
            _ = [piece async for piece in requests.stream(actor.step, {"text": "x"}, seconds=10)]
    assert broken.value.fault.code == "stream-broken"


async def test_whoever_leaves_a_stream_ends_the_work(workshop: Workshop, requests: Requests) -> None:
    endless = Endless()
    async with workshop(endless.actor):
        async with aclosing(requests.stream(endless.actor.step, {"text": "x"}, seconds=30)) as pieces:
            async for piece in pieces:
                if piece.body["sequence"] == 10:
                    break
        await asyncio.wait_for(endless.ended.wait(), 5)


async def test_a_listener_that_died_ends_the_work(workshop: Workshop, bus_settings: BusSettings) -> None:
    """Nobody said that it is to be cancelled: its reply queue is gone, that is all."""
    endless = Endless()
    async with workshop(endless.actor):
        async with open_outbox(bus_settings) as outbox, open_requests(outbox) as requests:
            heard = requests.stream(endless.actor.step, {"text": "x"}, seconds=30)
            await anext(heard)
            requests.cancel = _nothing  # type: ignore[method-assign, assignment]
        await asyncio.wait_for(endless.ended.wait(), 5)
        await heard.aclose()


async def _nothing(job_id: str) -> None:
    """It died before it could."""


async def test_a_stream_that_does_not_end_in_time_names_the_job_and_stops_it(workshop: Workshop, requests: Requests) -> None:
    endless = Endless()
    async with workshop(endless.actor):
        with pytest.raises(ReplyTimeout):
            async for _ in requests.stream(endless.actor.step, {"text": "x"}, seconds=0.5):
                pass
        await soon(lambda: asyncio.sleep(0, endless.ended.is_set()), 5)
