"""A thousand clients wait at one gateway process for slow replies; and what that process weighs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bus.actor import Actor, Context, Handler, Tools
from bus.settings import BusSettings
from contracts.consult import Consult, ConsultDone
from contracts.wire import Step
from tests.integration.conftest import Workshop
from tests.integration.front import Front, open_front

CLIENTS, REPLY_SECONDS = 1000, 2.0
ORDER = {"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "how long?"}}]}


async def slowly(command: Consult, context: Context) -> ConsultDone:
    await asyncio.sleep(REPLY_SECONDS)
    return ConsultDone(prediction=command.prompt)


@asynccontextmanager
async def open_slow(tools: Tools) -> AsyncIterator[Handler]:
    yield slowly


SLOW = Actor(step=Step.CONSULT, command=Consult, result=ConsultDone, open=open_slow, timeout_seconds=30, prefetch=CLIENTS, remembers=False)


@pytest.fixture
async def front(bus_settings: BusSettings) -> AsyncIterator[Front]:
    async with open_front(bus_settings, GATEWAY_RATE_REQUESTS="0") as opened:
        yield opened


async def test_it_starts_soon_and_is_light(front: Front) -> None:
    """Under two seconds of its own work and 150 MB, without torch; the wall clock has room, as this machine may be busy."""
    used = front.seen.cpu_times()
    assert used.user + used.system < 2.0
    assert front.started_seconds < 10
    assert front.seen.memory_info().rss < 150e6
    assert (await front.call("GET", "/health"))[0] == 200
    mapped = {mapping.path for mapping in front.seen.memory_maps()}
    assert not [path for path in mapped if "torch" in path]


async def test_a_thousand_clients_wait_and_each_gets_its_reply(front: Front, workshop: Workshop, bus_settings: BusSettings) -> None:
    """In little more time than one, without a thread more, and in little memory."""
    patient = bus_settings.model_copy(update={"publish_timeout_seconds": 60.0})  # three thousand letters leave the actor at once
    async with workshop(SLOW, settings=patient):
        before, threads = front.seen.memory_info().rss, front.seen.num_threads()
        begun = time.monotonic()
        calls = [asyncio.create_task(front.call("POST", "/jobs?wait=60", ORDER)) for _ in range(CLIENTS)]
        await asyncio.sleep(REPLY_SECONDS)
        at_most = front.seen.memory_info().rss
        answers = await asyncio.gather(*calls)
        seconds = time.monotonic() - begun
        after = (await front.call("GET", "/health"))[1]
    assert [status for status, _ in answers] == [200] * CLIENTS
    assert {answer["result"]["prediction"] for _, answer in answers} == {"how long?"}
    assert len({answer["job_id"] for _, answer in answers}) == CLIENTS
    assert (after["waiting"], after["late_replies"]) == (0, 0)
    assert front.seen.num_threads() == threads
    assert at_most - before < 100e6
    assert seconds < 60, "one after the other they would take half an hour"


async def test_replies_that_nobody_awaits_any_more_are_counted(front: Front, workshop: Workshop) -> None:
    async with workshop(SLOW):
        answers = await asyncio.gather(*(front.call("POST", "/jobs?wait=0.1", ORDER) for _ in range(20)))
        assert {status for status, _ in answers} == {202}
        async with asyncio.timeout(20):
            while (await front.call("GET", "/health"))[1]["late_replies"] < 20:
                await asyncio.sleep(0.1)
