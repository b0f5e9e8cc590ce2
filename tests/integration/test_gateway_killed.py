"""A gateway killed with -9 while jobs run. Another is started: the jobs went on, and the clients ask again by id or by key."""

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
from tests.integration.test_jobs import parse_events, wait_until_job_ended
from tests.support.broker_client import BrokerClient, StartWorker
from tests.support.gateway_process import GatewayProcess, open_gateway_process

JOBS = 20
ORDER = {"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "how long?"}}]}
TWO_STOPS = {"kind": "itinerary", "stops": [*ORDER["stops"], *ORDER["stops"]]}


class PausedConsultActor:
    """Answers when it is told that it may, and keeps count of how often it was asked about each job."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.may = asyncio.Event()

    async def handle(self, command: Consult, context: Context) -> ConsultDone:
        self.asked[context.job_id] += 1
        await self.may.wait()
        return ConsultDone(prediction="long")

    @property
    def actor(self) -> Actor:
        @asynccontextmanager
        async def opening(tools: Resources) -> AsyncIterator[Handler]:
            yield self.handle

        return Actor(step=Step.CONSULT, command=Consult, result=ConsultDone, open=opening, timeout_seconds=60, prefetch=100)


class GatewayWithJobs:
    """Gateways, one after the other, and a client at the one that is open last."""

    def __init__(self, stack: AsyncExitStack, bus: BusSettings) -> None:
        self._stack, self._bus = stack, bus

    async def open(self) -> tuple[GatewayProcess, httpx.AsyncClient]:
        front = await self._stack.enter_async_context(open_gateway_process(self._bus))
        client = httpx.AsyncClient(base_url=front.url, timeout=60)
        return front, await self._stack.enter_async_context(client)


@pytest.fixture
async def gateway_with_jobs(bus_settings: BusSettings, broker_client: BrokerClient) -> AsyncIterator[GatewayWithJobs]:
    async with AsyncExitStack() as stack:
        yield GatewayWithJobs(stack, bus_settings)


async def submitted_job(http: httpx.AsyncClient, order: dict[str, Any] = ORDER, **headers: str) -> str:
    response = await http.post("/jobs", json=order, headers=headers)
    assert response.status_code == 202
    job_id: str = response.json()["job_id"]
    return job_id


async def test_jobs_complete_after_gateway_kill(gateway_with_jobs: GatewayWithJobs, start_worker: StartWorker) -> None:
    """Also for whoever waited: the same Idempotency-Key is the same job, and nothing was done twice."""
    oracle, key = PausedConsultActor(), {"Idempotency-Key": uuid4().hex}
    async with start_worker(*ACTORS, oracle.actor):
        front, http = await gateway_with_jobs.open()
        ids = [await submitted_job(http) for _ in range(JOBS)]
        waiting = asyncio.create_task(http.post("/jobs", json=ORDER, params={"wait": 60}, headers=key))
        async with asyncio.timeout(20):
            while len(oracle.asked) < JOBS + 1:
                await asyncio.sleep(0.05)
        await front.kill()
        with pytest.raises(httpx.TransportError):
            await waiting
        oracle.may.set()
        _, http = await gateway_with_jobs.open()
        jobs = [await wait_until_job_ended(http, job_id) for job_id in ids]
        again = await http.post("/jobs", json=ORDER, params={"wait": 60}, headers=key)
    assert [job["result"]["prediction"] for job in jobs] == ["long"] * JOBS
    assert (again.status_code, again.json()["result"]["prediction"]) == (200, "long")
    assert again.json()["job_id"] in oracle.asked
    assert set(oracle.asked.values()) == {1}


async def test_event_stream_resumes_at_another_gateway(gateway_with_jobs: GatewayWithJobs, start_worker: StartWorker) -> None:
    """After the last event that the client saw: none is missing and none comes twice."""
    oracle = PausedConsultActor()
    async with start_worker(*ACTORS, oracle.actor):
        front, http = await gateway_with_jobs.open()
        job_id = await submitted_job(http, TWO_STOPS)
        seen = ""
        async with http.stream("GET", f"/jobs/{job_id}/events") as stream:
            pieces = stream.aiter_text()
            while "event: job.accepted" not in seen or not seen.endswith("\n\n"):
                seen += await anext(pieces)
            await front.kill()
            with pytest.raises(httpx.TransportError):
                await anext(pieces)
        oracle.may.set()
        _, http = await gateway_with_jobs.open()
        rest = await http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": parse_events(seen)[-1]["id"]})
        whole = parse_events((await http.get(f"/jobs/{job_id}/events")).text)
    assert parse_events(seen) + parse_events(rest.text) == whole
    assert [event["event"] for event in whole if event["event"].startswith(("job", "consult.completed"))] == [
        *("job.accepted", "consult.completed", "consult.completed", "job.completed")
    ]


async def test_retried_submission_during_gateway_kill_is_one_job(gateway_with_jobs: GatewayWithJobs, start_worker: StartWorker) -> None:
    """Whatever the killed one had done of it by then: the claim, the claim and the command, or nothing."""
    oracle = PausedConsultActor()
    oracle.may.set()
    keys = [{"Idempotency-Key": uuid4().hex} for _ in range(JOBS)]
    async with start_worker(*ACTORS, oracle.actor):
        front, http = await gateway_with_jobs.open()
        await submitted_job(http)
        calls = [asyncio.create_task(http.post("/jobs", json=ORDER, headers=key)) for key in keys]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await front.kill()
        cut = await asyncio.gather(*calls, return_exceptions=True)
        _, http = await gateway_with_jobs.open()
        answers = [await http.post("/jobs", json=ORDER, params={"wait": 30}, headers=key) for key in keys]
    assert any(isinstance(answer, httpx.TransportError) for answer in cut), "it died in the middle"
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["job_id"] for answer in answers}) == JOBS
    assert set(oracle.asked.values()) == {1}
