"""Device seconds of a job from its engine to the result, the event, the slip's log, the ledger, the metric, `GET /jobs/{id}`, the console
and `atelier usage`: with a real model process, a real broker and a real database."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from actors import ledger
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings
from bus.actor import Actor, Context, Handler, Resources
from bus.errors import TemporaryError
from bus.observability import metrics
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from contracts import broker_names
from contracts.consult import Consult, ConsultDone
from contracts.event import Event
from contracts.job import Job
from contracts.text import ModelInfo, Text, TextDone, Timings, Usage
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.faulty_engine import FaultyRequest

ROOT = Path(__file__).parents[2]
MODEL = ModelInfo(
    model_name="m", max_tokens=1, temperature=0, timings=Timings(generation_ms=1, total_ms=1, tokens_generated=1, tokens_per_second=1)
)
SLIP = {"itinerary": [{"step": "text", "arguments": {"messages": [{"role": "user", "content": "?"}]}}]}


def build_actors(executor: Executor) -> tuple[Actor, Actor]:
    """Two steps on one executor. A question that says "again" fails once after its work, one that says "fail" always."""

    async def consult(command: Consult, context: Context) -> ConsultDone:
        await executor.run(FaultyRequest(steps=4, seconds=0.05))
        if command.prompt == "fail" or (command.prompt == "again" and context.attempt == 1):
            raise TemporaryError("once more", delay=0.05)
        return ConsultDone(prediction="yes")

    async def text(command: Text, context: Context) -> TextDone:
        await executor.run(FaultyRequest(steps=2, seconds=0.05))
        return TextDone(
            response="done",
            generation_time=0.1,
            model_info=MODEL,
            usage=Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2),
            response_is_json=False,
        )

    @asynccontextmanager
    async def open_consult(resources: Resources) -> AsyncIterator[Handler]:
        resources.register_engine(executor)
        yield consult

    @asynccontextmanager
    async def open_text(resources: Resources) -> AsyncIterator[Handler]:
        yield text

    limits: dict[str, Any] = {"timeout_seconds": 30, "prefetch": 4}
    return (
        Actor(step="consult", command=Consult, result=ConsultDone, open=open_consult, **limits),
        Actor(step="text", command=Text, result=TextDone, open=open_text, **limits),
    )


@pytest.fixture
async def executor() -> AsyncIterator[Executor]:
    spec = EngineSpec("tests.support.faulty_engine:open_faulty_engine", None)
    async with open_executor(spec, ExecutorSettings(), max_in_flight=8, capacity=8) as opened:
        await opened.ready()
        yield opened


@pytest.fixture
async def http(bus_settings: BusSettings, store_folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(bus_settings, GatewaySettings(), StoreSettings(store_url=store_folder.as_uri()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=60) as client,
    ):
        yield client


def counted_seconds() -> dict[str, float]:
    [family] = metrics.DEVICE_SECONDS.collect()
    return {sample.labels["step"]: sample.value for sample in family.samples if sample.name.endswith("_total")}


async def ask(broker_client: BrokerClient, prompt: str, **slip: Any) -> str:
    job_id = f"job-{uuid4().hex[:8]}"
    body = {"prompt": prompt} | ({"slip": slip} if slip else {})
    await broker_client.publish("consult", body, correlation_id=job_id, headers={"atelier-tenant": f"tenant-{job_id}"})
    return job_id


async def ended_job(http: httpx.AsyncClient, job_id: str, steps: int = 1) -> Job:
    """The job, once its end and the events of its steps are in the ledger."""
    jobs: list[Job] = []

    async def has_ended() -> bool:
        response = await http.get(f"/jobs/{job_id}")
        if response.status_code == 200:
            jobs.append(Job.model_validate(response.json()))
        ended = [step for step in jobs[-1].steps if step.state in {"completed", "failed"}] if jobs else []
        return len(ended) >= steps and jobs[-1].state in {"completed", "failed"}

    await wait_until(has_ended)
    return jobs[-1]


async def usage(bus_settings: BusSettings, *arguments: str) -> str:
    assert bus_settings.database_url
    environment = {"DATABASE_URL": bus_settings.database_url.get_secret_value(), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ops.cli", "usage", *arguments, env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return out.decode()


@pytest.mark.usefixtures("purged_queues")
async def test_job_shows_the_device_seconds_of_its_steps_everywhere(
    executor: Executor, http: httpx.AsyncClient, start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    before = counted_seconds()
    async with start_worker(*build_actors(executor), *ledger.ACTORS):
        job_id = await ask(broker_client, "yes?", **SLIP)
        job = await ended_job(http, job_id, 2)
        page = (await http.get(f"/console/jobs/{job_id}")).text
        events = (await http.get(f"/jobs/{job_id}/events", headers={"accept": "text/event-stream"})).text
    seconds = {step.step: step.device_seconds for step in job.steps}
    assert seconds.keys() == {"consult", "text"}
    assert (seconds["consult"] or 0.0) >= 0.2
    assert (seconds["text"] or 0.0) >= 0.1
    assert job.device_seconds == pytest.approx(sum(value or 0.0 for value in seconds.values()))
    assert [step.result["device_seconds"] for step in job.steps if step.result] == [seconds["consult"], seconds["text"]]
    assert job.result
    assert job.result["device_seconds"] == seconds["text"], "the result is the last step's, and so are its seconds"
    for step, value in seconds.items():
        assert counted_seconds()[step] - before.get(step, 0.0) == pytest.approx(value, abs=1e-5)
        assert f'"device_seconds":{value}' in events.replace(": ", ":")
    assert "Device time" in page
    assert page.count(" ms</td>") >= 3

    report = json.loads(await usage(bus_settings, "--json", "--tenant", f"tenant-{job_id}", "--since", "1h"))
    assert {row["step"]: row["device_seconds"] for row in report["usage"]} == pytest.approx(seconds)
    assert "total" in await usage(bus_settings, "--tenant", f"tenant-{job_id}")
    assert await usage(bus_settings, "--tenant", "nobody") == "No device time is recorded.\n"


@pytest.mark.usefixtures("purged_queues")
async def test_attempts_that_fail_count_for_their_job(
    executor: Executor, http: httpx.AsyncClient, start_worker: StartWorker, broker_client: BrokerClient
) -> None:
    """A step that is tried again has the sum of its attempts, and one that fails for good, too."""
    async with start_worker(*build_actors(executor), *ledger.ACTORS):
        [repeated] = (await ended_job(http, await ask(broker_client, "again"))).steps
        [dead] = (await ended_job(http, await ask(broker_client, "fail"))).steps
        await broker_client.take_message(broker_names.dead_letter_queue("consult"))
    assert (repeated.attempt, dead.state) == (2, "failed")
    assert (repeated.device_seconds or 0.0) >= 2 * 0.2
    assert (dead.device_seconds or 0.0) >= dead.attempt * 0.2 > 0.2


def test_events_without_a_device_have_no_seconds() -> None:
    event = Event.model_validate({"kind": "completed", "step": "upload", "job_id": "j", "at": "2026-01-01T00:00:00Z", "message_id": "m"})
    assert "device_seconds" not in event.model_dump(mode="json", exclude_none=True)
