"""A key sees the jobs of its own tenant only. Real broker, ledger and actors, a fake image actor."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from actors.ledger import ACTORS
from bus.settings import BusSettings
from contracts import broker_names
from contracts.steps import CLIENT_STEPS
from tests.support.broker_client import BrokerClient, StartWorker
from tests.support.gateway_app import JOB_ACTORS, open_gateway, order_body, parse_events, wait_until_job_ended

KEYS = {name: f"{name}-{'k' * 32}" for name in ("shop", "office", "watch")}


def key(name: str) -> dict[str, str]:
    return {"X-API-Key": KEYS[name]}


@pytest.fixture
async def http(bus_settings: BusSettings, store_folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    keys = " ".join(f"{name}:{value}" for name, value in KEYS.items())
    async with open_gateway(bus_settings, store_folder, api_keys=keys, operators="watch", question_seconds=3) as client:
        yield client


async def test_job_of_another_tenant_is_404(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    """Its state, events, files and cancellation: the same response as for an unknown job."""
    async with start_worker(*JOB_ACTORS):
        submitted = await http.post("/jobs", json=order_body(), params={"wait": 20}, headers=key("shop"))
        job_id, unknown_id = submitted.json()["job_id"], str(uuid4())
        http.headers.update(key("shop"))
        job = await wait_until_job_ended(http, job_id)
        (file,) = [file["name"] for file in job["files"] if file["name"].startswith("job-")]
        for method, path, status in [("GET", "", 200), ("GET", "/events", 200), ("GET", f"/files/{file}", 200), ("DELETE", "", 409)]:
            own, foreign, unknown = [
                await http.request(method, f"/jobs/{requested_id}{path}", headers=key(name))
                for requested_id, name in [(job_id, "shop"), (job_id, "office"), (unknown_id, "office")]
            ]
            assert own.status_code == status, path
            assert (foreign.status_code, unknown.status_code) == (404, 404), path
            assert foreign.json() | {"status": 0} == json_about(unknown, unknown_id, job_id) | {"status": 0}, path
        as_operator = [await http.get(f"/jobs/{job_id}{path}", headers=key("watch")) for path in ("", "/events", f"/files/{file}")]
    assert job["tenant"] == "shop"
    assert [answer.status_code for answer in as_operator] == [200, 200, 200]


def json_about(response: httpx.Response, requested_id: str, other_id: str) -> dict[str, object]:
    """The fields of a response body; `requested_id` is replaced by `other_id`."""
    return {name: value.replace(requested_id, other_id) if isinstance(value, str) else value for name, value in response.json().items()}


async def test_job_list_contains_only_own_tenant(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    async with start_worker(*JOB_ACTORS):
        ids = {}
        for name in ("shop", "office"):
            submitted = await http.post("/jobs", json=order_body(), params={"wait": 20}, headers=key(name))
            ids[name] = submitted.json()["job_id"]
            http.headers.update(key(name))
            await wait_until_job_ended(http, ids[name])
        listings = {name: await http.get("/jobs", params={"limit": 500}, headers=key(name)) for name in KEYS}
        foreign = await http.get("/jobs", params={"tenant": "office"}, headers=key("shop"))
        office = await http.get("/jobs", params={"tenant": "office", "limit": 500}, headers=key("watch"))
    listed = {name: {job["job_id"] for job in answer.json()["jobs"]} for name, answer in listings.items()}
    assert {job["tenant"] for job in listings["shop"].json()["jobs"]} == {"shop"}
    assert (ids["shop"] in listed["shop"], ids["office"] in listed["office"]) == (True, True)
    assert set(ids.values()) <= listed["watch"]
    assert (foreign.status_code, foreign.json()["title"]) == (403, "tenant-foreign")
    assert {job["tenant"] for job in office.json()["jobs"]} == {"office"}


async def test_operator_rights_are_required_for_other_tenants_and_dead_letters(
    http: httpx.AsyncClient, broker_client: BrokerClient
) -> None:
    """A rejected request is not published."""
    foreign = await http.post("/jobs", json=order_body(tenant="office"), headers=key("shop"))
    own = await http.post("/jobs", json=order_body(tenant="shop"), headers=key("shop"))
    other = await http.post("/jobs", json=order_body(tenant="office"), headers=key("watch"))
    letters = await http.get("/dead-letters", headers=key("shop"))
    assert [answer.status_code for answer in (foreign, own, other, letters)] == [403, 202, 202, 403]
    assert letters.json()["title"] == "operators-only"
    sent = [await broker_client.take_message(broker_names.work_queue("image")) for _ in range(2)]
    assert {letter.headers["atelier-tenant"] for letter in sent} == {"shop", "office"}


async def test_running_job_events_are_hidden_from_other_tenant(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    """Also before the job is in the ledger."""
    submitted = await http.post("/jobs", json=order_body(), headers=key("shop"))
    path = f"/jobs/{submitted.json()['job_id']}/events"
    async with start_worker(*JOB_ACTORS):
        own, foreign = await asyncio.gather(http.get(path, headers=key("shop")), http.get(path, headers=key("office")))
    assert parse_events(own.text)[-1]["event"] == "job.completed"
    assert (foreign.status_code, foreign.json()["title"]) == (404, "job-unknown")


async def test_foreign_event_of_a_running_job_is_hidden(
    http: httpx.AsyncClient, start_worker: StartWorker, broker_client: BrokerClient
) -> None:
    """A live event of another tenant with the same job id neither appears in the stream nor ends it."""
    async with start_worker(*ACTORS):
        submitted = await http.post("/jobs", json=order_body(), headers=key("shop"))
        job_id = submitted.json()["job_id"]
        stream = asyncio.create_task(http.get(f"/jobs/{job_id}/events", headers=key("shop")))
        console = asyncio.create_task(http.get(f"/console/jobs/{job_id}/live", headers=key("shop")))
        await asyncio.sleep(1)
        for tenant, text in (("office", "FORGED"), (None, "FORGED"), ("shop", "genuine")):
            event = {"kind": "completed", "step": "job", "job_id": job_id, "at": "2026-01-01T00:00:00Z", "message_id": text}
            body = event | {"tenant": tenant, "result": {"result_url": text}}
            await broker_client.publish(
                broker_names.event_routing_key("job", "completed", job_id), body, exchange=broker_names.EVENTS_EXCHANGE
            )
        events, console_events = parse_events((await stream).text), (await console).text
        http.headers.update(key("shop"))
        job = await wait_until_job_ended(http, job_id)
    assert [event["event"] for event in events] == ["job.accepted", "job.completed"]
    assert "genuine" in events[-1]["data"]
    assert "FORGED" not in console_events
    assert job["result"] == {"result_url": "genuine"}


async def test_generation_of_another_tenant_is_409_at_submission(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    """The first tenant may order it again."""
    order = order_body(generation_id=uuid4().int >> 70)
    async with start_worker(*ACTORS):
        responses = [await http.post("/jobs", json=order, headers=key(name)) for name in ("shop", "office", "shop")]
        retried = await http.post("/jobs", json=order, headers=key("office") | {"Idempotency-Key": uuid4().hex})
    assert [response.status_code for response in (*responses, retried)] == [202, 409, 202, 409]
    assert {response.json()["title"] for response in (responses[1], retried)} == {"generation-foreign"}


@pytest.mark.parametrize("stops", [["webhook"], ["consult", "webhook"]])
async def test_itinerary_with_webhook_is_422_that_names_the_allowed_steps(
    http: httpx.AsyncClient, broker_client: BrokerClient, stops: list[str]
) -> None:
    arguments = {"webhook": {"kind": "failed", "generation_id": 7}, "consult": {"prompt": "x"}}
    body = {"kind": "itinerary", "stops": [{"step": step, "arguments": arguments[step]} for step in stops]}
    for name in ("shop", "watch"):
        response = await http.post("/jobs", json=body, headers=key(name))
        assert response.status_code == 422
        assert all(step in response.text for step in CLIENT_STEPS)


async def test_idempotency_key_is_scoped_to_tenant(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    """The same Idempotency-Key of two tenants means two jobs. A tenant sees its own one at once."""
    idempotency_key = {"Idempotency-Key": uuid4().hex}
    async with start_worker(*JOB_ACTORS):
        of_shop, of_office = [
            await http.post("/jobs", json=order_body(), headers=idempotency_key | key(name)) for name in ("shop", "office")
        ]
        own = await http.get(f"/jobs/{of_shop.json()['job_id']}", headers=key("shop"))
        hidden = await http.get(f"/jobs/{of_shop.json()['job_id']}", headers=key("office"))
    assert of_shop.json()["job_id"] != of_office.json()["job_id"]
    assert (own.status_code, own.json()["tenant"], hidden.status_code) == (200, "shop", 404)
