"""The list of jobs has the beginning of each order's prompt and the latest step, and the jobs with pictures can be listed alone."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from actors.ledger import ACTORS
from bus.amqp.publisher import open_publisher
from bus.amqp.request_reply import RequestClient, open_request_client
from bus.settings import BusSettings
from contracts import broker_names
from tests.support.broker_client import BrokerClient, StartWorker, wait_until

START = datetime(2026, 1, 1, tzinfo=UTC)
PICTURE = {"uri": "s3://store/x.png", "sha256": "0" * 64, "size": 1, "media_type": "image/png"}


async def publish_job(broker_client: BrokerClient, job_id: str, order: dict[str, Any], *steps: str, tenant: str, **result: Any) -> None:
    """The events of a completed job, one second apart."""
    events: list[tuple[str, str, dict[str, Any]]] = [("job", "accepted", {"kind": "image_order", "itinerary": list(steps), "order": order})]
    events += [(step, "completed", {}) for step in steps]
    events.append(("job", "completed", result))
    for offset, (step, kind, content) in enumerate(events):
        body = {"kind": kind, "step": step, "job_id": job_id, "message_id": f"{job_id}/{step}", "tenant": tenant, "result": content}
        body["at"] = (START + timedelta(seconds=offset)).isoformat()
        await broker_client.publish(broker_names.event_routing_key(step, kind, job_id), body, exchange=broker_names.EVENTS_EXCHANGE)


async def list_jobs(requests: RequestClient, tenant: str, **query: Any) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = (await requests.request("job.list", query, seconds=5, tenant=tenant))["jobs"]
    return jobs


async def wait_for_jobs(requests: RequestClient, tenant: str, count: int, steps: int) -> None:
    async def recorded() -> bool:
        jobs = await list_jobs(requests, tenant)
        known = [await requests.request("job.get", {"job_id": job["job_id"]}, seconds=5, tenant=tenant) for job in jobs]
        complete = [job for job in known if job["state"] == "completed" and job.get("kind") and len(job["steps"]) == steps]
        return len(complete) == count

    await wait_until(recorded)


@pytest.mark.parametrize(
    ("order", "prompt"),
    [
        ({"kind": "image_order", "prompt": "a harbour " * 40}, ("a harbour " * 40)[:200]),
        ({"kind": "itinerary", "stops": [{"step": "consult", "arguments": {"prompt": "What is it?"}}]}, "What is it?"),
        ({"kind": "itinerary", "stops": [{"step": "text", "arguments": {"message": "Hello"}}]}, "Hello"),
        ({"kind": "itinerary", "stops": [{"step": "image", "arguments": {}}], "variables": {"prompt": "a boat"}}, "a boat"),
        ({"kind": "itinerary", "stops": []}, None),
    ],
)
async def test_job_has_beginning_of_its_prompt(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings, order: dict[str, Any], prompt: str | None
) -> None:
    tenant = f"shop-{uuid4().hex[:8]}"
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        await publish_job(broker_client, f"job-{uuid4().hex[:8]}", order, "image", "upload", tenant=tenant)
        await wait_for_jobs(requests, tenant, 1, 2)
        (listed,) = await list_jobs(requests, tenant)
        alone = await requests.request("job.get", {"job_id": listed["job_id"]}, seconds=5, tenant=tenant)
    for job in (listed, alone):
        assert (job.get("prompt"), job["step"]) == (prompt, "upload")


async def test_jobs_with_pictures_are_listed_alone(
    start_worker: StartWorker, broker_client: BrokerClient, bus_settings: BusSettings
) -> None:
    """Those of the tenant; the other conditions count as well. A page of them is full although other jobs lie between."""
    mark = uuid4().hex[:8]
    shop, office = f"shop-{mark}", f"office-{mark}"
    results: dict[str, dict[str, Any]] = {
        f"files-{mark}": {"files": [PICTURE]},
        f"images-{mark}": {"images": [PICTURE]},
        f"text-{mark}": {"response": "no picture"},
    }
    async with start_worker(*ACTORS), open_publisher(bus_settings) as publisher, open_request_client(publisher) as requests:
        for job_id, result in results.items():
            await publish_job(broker_client, job_id, {"prompt": f"order {job_id}"}, tenant=shop, **result)
        await publish_job(broker_client, f"foreign-{mark}", {"prompt": "a secret"}, tenant=office, files=[PICTURE])
        await wait_for_jobs(requests, shop, 3, 0)
        await wait_for_jobs(requests, office, 1, 0)
        of_shop = await list_jobs(requests, shop, pictures=True)
        page = await list_jobs(requests, shop, pictures=True, limit=1)
        found = await list_jobs(requests, shop, pictures=True, words=f"images-{mark}")
        everything = await list_jobs(requests, shop)
        by_state = await list_jobs(requests, shop, pictures=True, state="failed")
    assert {job["job_id"] for job in of_shop} == {f"files-{mark}", f"images-{mark}"}
    assert (len(page), len(everything), by_state) == (1, 3, [])
    assert [job["job_id"] for job in found] == [f"images-{mark}"]
    assert "a secret" not in str([of_shop, everything])
