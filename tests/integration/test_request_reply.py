"""Request and reply through one queue, many in flight."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bus.actor import Context
from bus.errors import PermanentError, PublishError
from bus.outbox import open_outbox
from bus.request_reply import ReplyFault, ReplyTimeout, Requests, open_requests
from bus.settings import BusSettings
from tests.integration.conftest import Echo, Echoed, Workshop, echo_actor


@pytest.fixture
async def requests(bus_settings: BusSettings) -> AsyncIterator[Requests]:
    async with open_outbox(bus_settings) as outbox, open_requests(outbox) as opened:
        yield opened


async def test_many_requests_wait_at_once_and_each_gets_its_own_reply(workshop: Workshop, requests: Requests) -> None:
    """A hundred callers on a step that takes a tenth of a second are served in far less than ten seconds."""

    async def slow(command: Echo, context: Context) -> Echoed:
        await asyncio.sleep(0.1)
        return Echoed(text=command.text)

    actor = echo_actor(slow, prefetch=100, remembers=False)
    async with workshop(actor), asyncio.timeout(5):
        replies = await asyncio.gather(*(requests.request(actor.step, {"text": str(i)}, seconds=5) for i in range(100)))
    assert [reply["text"] for reply in replies] == [str(i) for i in range(100)]


async def test_a_fault_is_raised_with_its_code(workshop: Workshop, requests: Requests) -> None:
    async def refusing(command: Echo, context: Context) -> Echoed:
        raise PermanentError("not-today", "come back tomorrow")

    actor = echo_actor(refusing)
    async with workshop(actor):
        with pytest.raises(ReplyFault) as refused:
            await requests.request(actor.step, {"text": "x"}, seconds=5)
    assert refused.value.fault.code == "not-today"


async def test_no_reply_in_time_names_the_job_and_the_late_one_is_counted(workshop: Workshop, requests: Requests) -> None:
    """The deadline travels along; what comes after it is counted and harms nobody."""

    async def slow(command: Echo, context: Context) -> Echoed:
        await asyncio.sleep(5)
        return Echoed(text=command.text)

    actor = echo_actor(slow)
    async with workshop(actor):
        with pytest.raises(ReplyTimeout) as late:
            await requests.request(actor.step, {"text": "x"}, seconds=0.3)
        assert late.value.job_id
        async with asyncio.timeout(5):
            while not requests.late_replies:
                await asyncio.sleep(0.02)


async def test_whoever_stops_waiting_cancels_the_work(workshop: Workshop, requests: Requests) -> None:
    """An HTTP client that goes away frees the worker."""
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def slow(command: Echo, context: Context) -> Echoed:
        begun.set()
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()
        return Echoed(text=command.text)

    actor = echo_actor(slow, timeout_seconds=40)
    async with workshop(actor):
        waiting = asyncio.create_task(requests.request(actor.step, {"text": "x"}, seconds=30))
        await asyncio.wait_for(begun.wait(), 5)
        waiting.cancel()
        await asyncio.wait_for(stopped.wait(), 5)


async def test_a_command_that_no_queue_takes_is_an_error_at_once(requests: Requests) -> None:
    with pytest.raises(PublishError, match="no queue takes"):
        await requests.request("nobody", {}, seconds=5)
