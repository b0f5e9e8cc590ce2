"""A gateway killed with SIGKILL while jobs run. They go on, and clients find them at another gateway by job id or Idempotency-Key."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from actors.ledger import ACTORS
from bus.actor import Actor, Context, Handler, Resources
from bus.settings import BusSettings
from contracts.consult import Consult, ConsultDone
from contracts.wire import Step
from tests.support.broker_client import StartWorker
from tests.support.gateway_app import parse_events, wait_until_job_ended
from tests.support.gateway_process import GatewayProcess, open_gateway_process

JOBS = 20
ORDER = {"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "how long?"}}]}
TWO_STEPS = {"kind": "itinerary", "stops": [*ORDER["stops"], *ORDER["stops"]]}


class PausedConsultActor:
    """Replies after `resume` is set, and counts its calls per job."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.resume = asyncio.Event()

    async def handle(self, command: Consult, context: Context) -> ConsultDone:
        self.calls[context.job_id] += 1
        await self.resume.wait()
        return ConsultDone(prediction="long")

    @property
    def actor(self) -> Actor:
        @asynccontextmanager
        async def open_handler(resources: Resources) -> AsyncIterator[Handler]:
            yield self.handle

        return Actor(step=Step.CONSULT, command=Consult, result=ConsultDone, open=open_handler, timeout_seconds=60, prefetch=100)


class GatewayStarter:
    """Opens gateway processes, each with a client."""

    def __init__(self, stack: AsyncExitStack, bus: BusSettings) -> None:
        self._stack, self._bus = stack, bus

    async def open(self) -> tuple[GatewayProcess, httpx.AsyncClient]:
        process = await self._stack.enter_async_context(open_gateway_process(self._bus))
        client = httpx.AsyncClient(base_url=process.url, timeout=60)
        return process, await self._stack.enter_async_context(client)


@pytest.fixture
async def gateway_starter(bus_settings: BusSettings, purged_queues: None) -> AsyncIterator[GatewayStarter]:
    async with AsyncExitStack() as stack:
        yield GatewayStarter(stack, bus_settings)


async def submit_job(http: httpx.AsyncClient, order: dict[str, Any] = ORDER, **headers: str) -> str:
    response = await http.post("/jobs", json=order, headers=headers)
    assert response.status_code == 202
    job_id: str = response.json()["job_id"]
    return job_id


async def test_jobs_complete_after_gateway_kill(gateway_starter: GatewayStarter, start_worker: StartWorker) -> None:
    """Also the job whose client was waiting: its Idempotency-Key finds it again. No job runs twice."""
    actor, key = PausedConsultActor(), {"Idempotency-Key": uuid4().hex}
    async with start_worker(*ACTORS, actor.actor):
        gateway, http = await gateway_starter.open()
        ids = [await submit_job(http) for _ in range(JOBS)]
        waiting = asyncio.create_task(http.post("/jobs", json=ORDER, params={"wait": 60}, headers=key))
        async with asyncio.timeout(20):
            while len(actor.calls) < JOBS + 1:
                await asyncio.sleep(0.05)
        await gateway.kill()
        with pytest.raises(httpx.TransportError):
            await waiting
        actor.resume.set()
        _, http = await gateway_starter.open()
        jobs = [await wait_until_job_ended(http, job_id) for job_id in ids]
        again = await http.post("/jobs", json=ORDER, params={"wait": 60}, headers=key)
    assert [job["result"]["prediction"] for job in jobs] == ["long"] * JOBS
    assert (again.status_code, again.json()["result"]["prediction"]) == (200, "long")
    assert again.json()["job_id"] in actor.calls
    assert set(actor.calls.values()) == {1}


async def test_event_stream_resumes_at_another_gateway(gateway_starter: GatewayStarter, start_worker: StartWorker) -> None:
    """After the last event that the client received: none is missing, none comes twice."""
    actor = PausedConsultActor()
    async with start_worker(*ACTORS, actor.actor):
        gateway, http = await gateway_starter.open()
        job_id = await submit_job(http, TWO_STEPS)
        received = ""
        async with http.stream("GET", f"/jobs/{job_id}/events") as stream:
            chunks = stream.aiter_text()
            while "event: job.accepted" not in received or not received.endswith("\n\n"):
                received += await anext(chunks)
            await gateway.kill()
            with pytest.raises(httpx.TransportError):
                await anext(chunks)
        actor.resume.set()
        _, http = await gateway_starter.open()
        resumed_response = await http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": parse_events(received)[-1]["id"]})
        all_events = parse_events((await http.get(f"/jobs/{job_id}/events")).text)
    assert parse_events(received) + parse_events(resumed_response.text) == all_events
    assert [event["event"] for event in all_events if event["event"].startswith(("job", "consult.completed"))] == [
        *("job.accepted", "consult.completed", "consult.completed", "job.completed")
    ]


async def test_retried_submission_during_gateway_kill_is_one_job(gateway_starter: GatewayStarter, start_worker: StartWorker) -> None:
    """Whether the killed gateway had claimed the key, had also published the command, or neither."""
    actor = PausedConsultActor()
    actor.resume.set()
    keys = [{"Idempotency-Key": uuid4().hex} for _ in range(JOBS)]
    async with start_worker(*ACTORS, actor.actor):
        gateway, http = await gateway_starter.open()
        await submit_job(http)
        calls = [asyncio.create_task(http.post("/jobs", json=ORDER, headers=key)) for key in keys]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await gateway.kill()
        interrupted = await asyncio.gather(*calls, return_exceptions=True)
        _, http = await gateway_starter.open()
        answers = [await http.post("/jobs", json=ORDER, params={"wait": 30}, headers=key) for key in keys]
    assert any(isinstance(answer, httpx.TransportError) for answer in interrupted), "the kill came too late"
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["job_id"] for answer in answers}) == JOBS
    assert set(actor.calls.values()) == {1}
