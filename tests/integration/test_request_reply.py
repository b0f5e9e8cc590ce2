"""Request and reply through one reply queue, many requests in flight."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bus.actor import Context
from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import ReplyFault, ReplyTimeout, RequestClient, open_request_client
from bus.errors import PermanentError, PublishError
from bus.settings import BusSettings
from tests.support.broker_client import Echo, Echoed, StartWorker, echo_actor


@pytest.fixture
async def requests(bus_settings: BusSettings) -> AsyncIterator[RequestClient]:
    async with open_publisher(bus_settings) as publisher, open_request_client(publisher) as client:
        yield client


async def test_concurrent_requests_receive_their_own_replies(start_worker: StartWorker, requests: RequestClient) -> None:
    """A hundred requests to a step that takes 0.1 s are concurrent: together they take far less than 10 s."""

    async def slow(command: Echo, context: Context) -> Echoed:
        await asyncio.sleep(0.1)
        return Echoed(text=command.text)

    actor = echo_actor(slow, prefetch=100, deduplicate=False)
    async with start_worker(actor), asyncio.timeout(5):
        replies = await asyncio.gather(*(requests.request(actor.step, {"text": str(i)}, seconds=5) for i in range(100)))
    assert [reply["text"] for reply in replies] == [str(i) for i in range(100)]


async def test_fault_is_raised_with_its_code(start_worker: StartWorker, requests: RequestClient) -> None:
    async def refusing(command: Echo, context: Context) -> Echoed:
        raise PermanentError("not-today", "come back tomorrow")

    actor = echo_actor(refusing)
    async with start_worker(actor):
        with pytest.raises(ReplyFault) as refused:
            await requests.request(actor.step, {"text": "x"}, seconds=5)
    assert refused.value.fault.code == "not-today"


async def test_timeout_names_job_and_late_reply_is_counted(start_worker: StartWorker, requests: RequestClient) -> None:
    """The command carries the deadline; a reply after it is counted and dropped."""

    async def slow(command: Echo, context: Context) -> Echoed:
        await asyncio.sleep(5)
        return Echoed(text=command.text)

    actor = echo_actor(slow)
    async with start_worker(actor):
        with pytest.raises(ReplyTimeout) as raised:
            await requests.request(actor.step, {"text": "x"}, seconds=0.3)
        assert raised.value.job_id
        async with asyncio.timeout(5):
            while not requests.late_replies:
                await asyncio.sleep(0.02)


async def test_cancelled_request_cancels_job(start_worker: StartWorker, requests: RequestClient) -> None:
    """As when an HTTP client disconnects."""
    started, stopped = asyncio.Event(), asyncio.Event()

    async def slow(command: Echo, context: Context) -> Echoed:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()
        return Echoed(text=command.text)

    actor = echo_actor(slow, timeout_seconds=40)
    async with start_worker(actor):
        request = asyncio.create_task(requests.request(actor.step, {"text": "x"}, seconds=30))
        await asyncio.wait_for(started.wait(), 5)
        request.cancel()
        await asyncio.wait_for(stopped.wait(), 5)
    assert request.cancelled()


async def test_unroutable_command_fails_immediately(requests: RequestClient) -> None:
    with pytest.raises(PublishError, match="no queue takes"):
        await requests.request("nobody", {}, seconds=5)
