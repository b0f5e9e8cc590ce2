"""The ledger stores jobs from their events, in any order of arrival, and answers queries about them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from actors.ledger import ACTORS
from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import ReplyFault, RequestClient, open_request_client
from bus.settings import BusSettings
from contracts import broker_names
from contracts.fault import Fault
from contracts.job import Job, JobEvents, Jobs
from contracts.wire import Header
from tests.support.broker_client import BrokerClient, StartWorker, wait_until

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTLE_SECONDS = 0.3
"""The ledger processes events concurrently: by then one that must change nothing has been processed."""


def event(job_id: str, step: str, kind: str, offset: float, **fields: Any) -> dict[str, Any]:
    at = (START + timedelta(seconds=offset)).isoformat()
    return {"kind": kind, "step": step, "job_id": job_id, "at": at, "message_id": f"{job_id}/{step}"} | fields


async def publish_event(broker_client: BrokerClient, body: dict[str, Any], **properties: Any) -> None:
    key = broker_names.event_routing_key(body["step"], body["kind"], body["job_id"])
    await broker_client.publish(key, body, exchange=broker_names.EVENTS_EXCHANGE, **properties)


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


async def test_job_that_misses_its_deadline_fails(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """The event that says so carries the deadline that has passed."""
    job_id = f"job-{uuid4().hex[:8]}"
    fault = {"code": "deadline-exceeded", "message": "x", "step": "image"}
    passed = {Header.DEADLINE.value: (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        await publish_event(broker_client, event(job_id, "image", "failed", 1, fault=fault), headers=passed)
        await publish_event(broker_client, event(job_id, "job", "failed", 1, fault=fault), headers=passed)
        job = await wait_for_job(requests, job_id, 1)
    assert (job.state, job.fault and job.fault.code) == ("failed", "deadline-exceeded")


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
        listed = Jobs.model_validate(await requests.request("job.list", {"state": "completed", "words": job_id}, seconds=5))
    assert (job.state, job.fault, job.result) == ("completed", None, {"result_url": "u"})
    assert job_id in [job.job_id for job in listed.jobs]


async def test_device_seconds_of_runs_that_fail_again_add_up(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """Each once, however often its event is delivered; the rest is that of the last run."""
    job_id = f"job-{uuid4().hex[:8]}"
    runs = [event(job_id, "image", "failed", at, fault=FAULT | {"message": f"run {at}"}, device_seconds=at / 4) for at in (1, 2, 5)]
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:

        async def publish_until(body: dict[str, Any], device_seconds: float) -> None:
            await publish_event(broker_client, body)
            await wait_until(lambda: step_seconds(requests, job_id, device_seconds))

        for body, total in zip(runs, (0.25, 0.75, 2.0), strict=True):
            await publish_until(body, total)
        for body in runs:
            await publish_event(broker_client, body)
        await asyncio.sleep(SETTLE_SECONDS)
        await publish_event(broker_client, event(job_id, "job", "failed", 6, fault=FAULT))
        job = await wait_for_job(requests, job_id, 1)
    [step] = job.steps
    assert (step.device_seconds, step.fault.message if step.fault else None, job.device_seconds) == (2.0, "run 5", 2.0)


async def step_seconds(requests: RequestClient, job_id: str, expected: float) -> bool:
    if not await has_steps(requests, job_id, 1):
        return False
    [step] = Job.model_validate(await requests.request("job.get", {"job_id": job_id}, seconds=5)).steps
    return step.device_seconds == expected


async def test_event_of_another_tenant_is_not_stored(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """Neither with another tenant nor with none, neither as a change of the job nor as a step of it."""
    job_id = f"job-{uuid4().hex[:8]}"
    forged = [
        event(job_id, step, kind, 9, message_id=f"forged-{step}", result={"result_url": "forged"}, **tenant)
        for tenant in ({"tenant": "office"}, {})
        for step, kind in (("job", "completed"), ("upload", "completed"), ("job", "accepted"))
    ]
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        await publish_event(broker_client, event(job_id, "image", "completed", 1, tenant="shop"))
        await wait_until(lambda: has_steps(requests, job_id, 1))
        for body in forged:
            await publish_event(broker_client, body)
        await asyncio.sleep(SETTLE_SECONDS)
        await publish_event(broker_client, event(job_id, "job", "failed", 2, tenant="shop", fault=FAULT))
        job = await wait_for_job(requests, job_id, 1)
        events = JobEvents.model_validate(await requests.request("job.events", {"job_id": job_id}, seconds=5)).events
    assert (job.state, job.tenant, job.result, job.kind, job.updated_at) == ("failed", "shop", None, None, START + timedelta(seconds=2))
    assert [(stored.step, stored.kind, stored.tenant) for stored in events] == [("image", "completed", "shop"), ("job", "failed", "shop")]


async def test_job_of_the_installation_is_given_to_no_tenant(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    job_id = f"job-{uuid4().hex[:8]}"
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        await publish_event(broker_client, event(job_id, "image", "completed", 1))
        await wait_until(lambda: has_steps(requests, job_id, 1))
        await publish_event(broker_client, event(job_id, "image", "failed", 2, tenant="office", message_id="forged", fault=FAULT))
        await asyncio.sleep(SETTLE_SECONDS)
        await publish_event(broker_client, event(job_id, "job", "completed", 3, result={"result_url": "u"}))
        job = await wait_for_job(requests, job_id, 1)
    assert (job.tenant, job.result, [step.state for step in job.steps]) == (None, {"result_url": "u"}, ["completed"])


async def test_claim_sets_the_tenant_before_the_first_event(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    job_id = f"job-{uuid4().hex[:8]}"
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        fields = {"job_id": job_id, "kind": "image_order", "sha256": "0" * 64, "tenant": "shop"}
        await requests.request("job.claim", fields, seconds=5, tenant="shop")
        await publish_event(broker_client, event(job_id, "job", "completed", 1, tenant="office", result={"result_url": "forged"}))
        await publish_event(broker_client, event(job_id, "job", "completed", 2, tenant="shop", result={"result_url": "u"}))
        job = await wait_for_job(requests, job_id, 0)
    assert (job.tenant, job.result) == ("shop", {"result_url": "u"})


FAULT = {"code": "lora-missing", "message": "x", "step": "image"}
END = {"completed": {"result": {"result_url": "u"}}, "failed": {"fault": FAULT}, "cancelled": {"fault": FAULT | {"code": "cancelled"}}}


FORGED_ENDS: dict[str, dict[str, Any]] = {
    "completed": {"result": {"result_url": "forged"}},
    "failed": {"fault": FAULT | {"code": "forged"}},
    "cancelled": {"fault": FAULT | {"code": "forged"}},
}


@pytest.mark.parametrize(("end", "kind"), [(end, kind) for end in END for kind in FORGED_ENDS if not kind == "completed" != end])
@pytest.mark.parametrize("message_id", ["other", None])
async def test_ended_job_keeps_its_end(
    start_worker: StartWorker,
    broker_client: BrokerClient,
    bus_settings: BusSettings,
    end: str,
    kind: str,
    message_id: str | None,
) -> None:
    """Except for one change: a job that did not succeed is completed by a replay. Nor do the job's stored events change."""
    job_id = f"job-{uuid4().hex[:8]}"
    later = event(job_id, "job", kind, 9, tenant="shop", **FORGED_ENDS[kind]) | ({"message_id": message_id} if message_id else {})
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        first = event(job_id, "job", end, 1, tenant="shop", **END[end])
        await publish_event(broker_client, first)
        await wait_until(lambda: has_state(requests, job_id, end))
        await publish_event(broker_client, later)
        await publish_event(broker_client, event(job_id, "image", "completed", 2, tenant="shop"))
        await wait_until(lambda: has_steps(requests, job_id, 1))
        await asyncio.sleep(SETTLE_SECONDS)
        job = Job.model_validate(await requests.request("job.get", {"job_id": job_id}, seconds=5))
        events = JobEvents.model_validate(await requests.request("job.events", {"job_id": job_id}, seconds=5)).events
    assert (job.state, job.result) == (end, END[end].get("result"))
    assert job.fault == (Fault.model_validate(END[end]["fault"]) if end != "completed" else None)
    assert [(stored.kind, stored.result, stored.fault) for stored in events if stored.step == "job"] == [(end, job.result, job.fault)]


async def has_steps(requests: RequestClient, job_id: str, count: int) -> bool:
    try:
        return len((await requests.request("job.get", {"job_id": job_id}, seconds=5)).get("steps", ())) >= count
    except ReplyFault:
        return False


async def test_replay_completes_failed_job(start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings) -> None:
    job_id = f"job-{uuid4().hex[:8]}"
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        await publish_event(broker_client, event(job_id, "job", "failed", 1, fault=FAULT))
        await wait_until(lambda: has_state(requests, job_id, "failed"))
        await publish_event(broker_client, event(job_id, "job", "completed", 9, result={"result_url": "u"}))

        async def is_completed() -> bool:
            return await has_state(requests, job_id, "completed")

        await wait_until(is_completed)
        job = Job.model_validate(await requests.request("job.get", {"job_id": job_id}, seconds=5))
    assert (job.result, job.fault, job.updated_at) == ({"result_url": "u"}, None, START + timedelta(seconds=9))


async def has_state(requests: RequestClient, job_id: str, state: str) -> bool:
    try:
        return bool((await requests.request("job.get", {"job_id": job_id}, seconds=5))["state"] == state)
    except ReplyFault:
        return False


async def test_completed_step_keeps_its_result(start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings) -> None:
    """A second event of the same message with another result."""
    job_id = f"job-{uuid4().hex[:8]}"
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        for result in ({"images": []}, {"images": ["forged"]}):
            await publish_event(broker_client, event(job_id, "image", "completed", 1, result=result))
            await wait_until(lambda: has_steps(requests, job_id, 1))
        await publish_event(broker_client, event(job_id, "job", "completed", 2, result={}))
        job = await wait_for_job(requests, job_id, 1)
    assert [step.result for step in job.steps] == [{"images": []}]


@pytest.mark.parametrize("step", ["job.get", "job.events", "job.list"])
async def test_query_of_a_tenant_sees_its_own_jobs_only(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings, step: str
) -> None:
    """The tenant is that of the query's header; a body that names another one is refused."""
    job_id = f"job-{uuid4().hex[:8]}"
    body = {"words": job_id} if step == "job.list" else {"job_id": job_id}
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        await publish_event(broker_client, event(job_id, "job", "completed", 1, tenant="shop", result={"kind": "x"}))
        await wait_for_job(requests, job_id, 0)
        own = await requests.request(step, body, seconds=5, tenant="shop")
        foreign = await fault_or_reply(requests, step, body, "office")
        named = await fault_or_reply(requests, "job.list", {"tenant": "shop"}, "office")
    assert job_id in str(own)
    assert foreign in ("job-unknown", {"events": []}, {"jobs": []})
    assert named == "tenant-foreign"


async def fault_or_reply(requests: RequestClient, step: str, body: dict[str, Any], tenant: str) -> Any:
    try:
        return await requests.request(step, body, seconds=5, tenant=tenant)
    except ReplyFault as error:
        return error.fault.code


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
