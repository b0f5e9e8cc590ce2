"""The ledger keeps what happened, in whatever order it hears of it."""

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

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def event(job_id: str, step: str, kind: str, after: float, **more: Any) -> dict[str, Any]:
    at = (T0 + timedelta(seconds=after)).isoformat()
    return {"kind": kind, "step": step, "job_id": job_id, "at": at, "message_id": f"{job_id}/{step}"} | more


async def tell(broker_client: BrokerClient, said: dict[str, Any]) -> None:
    await broker_client.publish(
        broker_names.event_routing_key(said["step"], said["kind"], said["job_id"]), said, exchange=broker_names.EVENTS_EXCHANGE
    )


async def kept(requests: RequestClient, job_id: str, steps: int, *, accepted: bool = False) -> Job:
    """The job, once so many of its steps are in the ledger, and (if asked) how it began."""
    found: list[Job] = []

    async def there() -> bool:
        try:
            found.append(Job.model_validate(await requests.request("job.get", {"job_id": job_id}, seconds=5)))
        except ReplyFault:
            return False
        return len(found[-1].steps) >= steps and bool(found[-1].kind) >= accepted and found[-1].state in {"completed", "failed"}

    await wait_until(there)
    return found[-1]


@pytest.mark.parametrize("backwards", [False, True])
async def test_job_state_is_independent_of_event_order(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings, backwards: bool
) -> None:
    """State, itinerary and steps come out the same; an event that comes twice changes nothing."""
    job_id = f"job-{uuid4().hex[:8]}"
    story = [
        event(job_id, "job", "accepted", 0, result={"kind": "image_generation", "itinerary": ["image", "upload"]}),
        event(job_id, "image", "progress", 1, progress={"current_step": 1, "total_steps": 4, "progress_percent": 25}),
        event(job_id, "image", "completed", 2, seconds=1.5, worker="w", result={"images": []}),
        event(job_id, "upload", "completed", 3, seconds=0.5, worker="w"),
        event(job_id, "job", "completed", 3, result={"result_url": "u"}),
    ]
    async with start_worker(*ACTORS), open_publisher(bus_settings) as outbox, open_request_client(outbox) as requests:
        for said in [*(reversed(story) if backwards else story), *story]:
            await tell(broker_client, said)
        job = await kept(requests, job_id, 2, accepted=True)
    assert (job.state, job.kind, job.itinerary, job.result) == ("completed", "image_generation", ["image", "upload"], {"result_url": "u"})
    assert [(step.step, step.state, step.seconds) for step in job.steps] == [("image", "completed", 1.5), ("upload", "completed", 0.5)]
    assert job.created_at == T0


async def test_a_job_that_failed_and_was_replayed_is_completed(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """A younger end outranks an older one."""
    job_id = f"job-{uuid4().hex[:8]}"
    fault = {"code": "lora-missing", "message": "x", "step": "image"}
    async with start_worker(*ACTORS), open_publisher(bus_settings) as outbox, open_request_client(outbox) as requests:
        await tell(broker_client, event(job_id, "job", "completed", 9, result={"result_url": "u"}))
        await tell(broker_client, event(job_id, "job", "failed", 5, fault=fault))
        await tell(broker_client, event(job_id, "image", "failed", 5, fault=fault))
        job = await kept(requests, job_id, 1)
        listed = Jobs.model_validate(await requests.request("job.list", {"state": "completed", "limit": 500}, seconds=5))
    assert (job.state, job.fault, job.result) == ("completed", None, {"result_url": "u"})
    assert job_id in [job.job_id for job in listed.jobs]


async def test_jobs_are_found_by_full_text_search(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """In any case and wherever they stand; a sign that means something to SQL means itself."""
    job_id, token = f"job-{uuid4().hex[:8]}", uuid4().hex[:8]
    order = {"prompt": f"A Harbour of {token}\x00", "copy": {"text": f"100% 항구_{token}"}, "seed": 4}
    told = {"kind": "image_order", "itinerary": ["image"], "order": order}
    async with start_worker(*ACTORS), open_publisher(bus_settings) as outbox, open_request_client(outbox) as requests:
        await tell(broker_client, event(job_id, "job", "accepted", 0, result=told))
        await tell(broker_client, event(job_id, "job", "completed", 1, result={}))
        await kept(requests, job_id, 0, accepted=True)

        async def found(words: str) -> list[str]:
            return [job["job_id"] for job in (await requests.request("job.list", {"words": words}, seconds=5))["jobs"]]

        assert await found(f"harbour of {token}") == await found(f"100% 항구_{token}") == await found(job_id) == [job_id]
        assert await found(f"항구%{token}") == []


async def test_unknown_job_returns_named_fault(start_worker: StartWorker, bus_settings: BusSettings) -> None:
    async with start_worker(*ACTORS), open_publisher(bus_settings) as outbox, open_request_client(outbox) as requests:
        with pytest.raises(ReplyFault) as refused:
            await requests.request("job.get", {"job_id": "never"}, seconds=5)
    assert refused.value.fault.code == "job-unknown"
