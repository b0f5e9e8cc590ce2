"""The ledger stores jobs from their events, in any order of arrival, and answers queries about them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from actors.ledger import ACTORS
from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import ReplyFault, RequestClient, open_request_client
from bus.settings import BusSettings
from contracts import broker_names
from contracts.job import Job, Jobs
from tests.support.broker_client import BrokerClient, StartWorker, wait_until

START = datetime(2026, 1, 1, tzinfo=UTC)


def event(job_id: str, step: str, kind: str, offset: float, **fields: Any) -> dict[str, Any]:
    at = (START + timedelta(seconds=offset)).isoformat()
    return {"kind": kind, "step": step, "job_id": job_id, "at": at, "message_id": f"{job_id}/{step}"} | fields


async def publish_event(broker_client: BrokerClient, body: dict[str, Any]) -> None:
    await broker_client.publish(
        broker_names.event_routing_key(body["step"], body["kind"], body["job_id"]), body, exchange=broker_names.EVENTS_EXCHANGE
    )


async def wait_for_job(requests: RequestClient, job_id: str, steps: int, *, accepted: bool = False) -> Job:
    """The job, once it has ended, `steps` of its steps are in the ledger and, with `accepted`, its `accepted` event."""
    jobs: list[Job] = []

    async def stored() -> bool:
        try:
            jobs.append(Job.model_validate(await requests.request("job.get", {"job_id": job_id}, seconds=5)))
        except ReplyFault:
            return False
        return len(jobs[-1].steps) >= steps and bool(jobs[-1].kind) >= accepted and jobs[-1].state in {"completed", "failed"}

    await wait_until(stored)
    return jobs[-1]


@pytest.mark.parametrize("reverse", [False, True])
async def test_job_state_is_independent_of_event_order(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings, reverse: bool
) -> None:
    """State, itinerary and steps are the same; a duplicate event changes nothing."""
    job_id = f"job-{uuid4().hex[:8]}"
    events = [
        event(job_id, "job", "accepted", 0, result={"kind": "image_generation", "itinerary": ["image", "upload"]}),
        event(job_id, "image", "progress", 1, progress={"current_step": 1, "total_steps": 4, "progress_percent": 25}),
        event(job_id, "image", "completed", 2, seconds=1.5, worker="w", result={"images": []}),
        event(job_id, "upload", "completed", 3, seconds=0.5, worker="w"),
        event(job_id, "job", "completed", 3, result={"result_url": "u"}),
    ]
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        for body in [*(reversed(events) if reverse else events), *events]:
            await publish_event(broker_client, body)
        job = await wait_for_job(requests, job_id, 2, accepted=True)
    assert (job.state, job.kind, job.itinerary, job.result) == ("completed", "image_generation", ["image", "upload"], {"result_url": "u"})
    assert [(step.step, step.state, step.seconds) for step in job.steps] == [("image", "completed", 1.5), ("upload", "completed", 0.5)]
    assert job.created_at == START


async def test_replayed_job_is_completed_after_failure(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """A later final state replaces an earlier one."""
    job_id = f"job-{uuid4().hex[:8]}"
    fault = {"code": "lora-missing", "message": "x", "step": "image"}
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        await publish_event(broker_client, event(job_id, "job", "completed", 9, result={"result_url": "u"}))
        await publish_event(broker_client, event(job_id, "job", "failed", 5, fault=fault))
        await publish_event(broker_client, event(job_id, "image", "failed", 5, fault=fault))
        job = await wait_for_job(requests, job_id, 1)
        listed = Jobs.model_validate(await requests.request("job.list", {"state": "completed", "limit": 500}, seconds=5))
    assert (job.state, job.fault, job.result) == ("completed", None, {"result_url": "u"})
    assert job_id in [job.job_id for job in listed.jobs]


async def test_jobs_are_found_by_full_text_search(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """Ignoring case, anywhere in the order; SQL wildcards are literal."""
    job_id, token = f"job-{uuid4().hex[:8]}", uuid4().hex[:8]
    order = {"prompt": f"A Harbour of {token}\x00", "copy": {"text": f"100% 항구_{token}"}, "seed": 4}
    accepted = {"kind": "image_order", "itinerary": ["image"], "order": order}
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        await publish_event(broker_client, event(job_id, "job", "accepted", 0, result=accepted))
        await publish_event(broker_client, event(job_id, "job", "completed", 1, result={}))
        await wait_for_job(requests, job_id, 0, accepted=True)

        async def search(words: str) -> list[str]:
            return [job["job_id"] for job in (await requests.request("job.list", {"words": words}, seconds=5))["jobs"]]

        assert await search(f"harbour of {token}") == await search(f"100% 항구_{token}") == await search(job_id) == [job_id]
        assert await search(f"항구%{token}") == []


async def test_unknown_job_returns_named_fault(start_worker: StartWorker, bus_settings: BusSettings) -> None:
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        with pytest.raises(ReplyFault) as raised:
            await requests.request("job.get", {"job_id": "never"}, seconds=5)
    assert raised.value.fault.code == "job-unknown"
