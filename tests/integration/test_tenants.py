"""A key belongs to a tenant, and sees that tenant's jobs alone. Real broker, ledger and actors; a painter in place of the model."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from bus.settings import BusSettings
from contracts import broker_names
from tests.integration.test_jobs import JOB_ACTORS, open_gateway, order_body, parse_events, wait_until_job_ended
from tests.support.broker_client import BrokerClient, StartWorker

KEYS = {name: f"{name}-{'k' * 32}" for name in ("shop", "office", "watch")}


def key(name: str) -> dict[str, str]:
    return {"X-API-Key": KEYS[name]}


@pytest.fixture
async def http(bus_settings: BusSettings, store_folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    keys = " ".join(f"{name}:{value}" for name, value in KEYS.items())
    async with open_gateway(bus_settings, store_folder, api_keys=keys, operators="watch", question_seconds=3) as client:
        yield client


async def test_job_of_another_tenant_is_404(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    """Its state, its events, its files, its cancellation: word for word the answer about a job that never was."""
    async with start_worker(*JOB_ACTORS):
        placed = await http.post("/jobs", json=order_body(), params={"wait": 20}, headers=key("shop"))
        job_id, never = placed.json()["job_id"], str(uuid4())
        http.headers.update(key("shop"))
        job = await wait_until_job_ended(http, job_id)
        (file,) = [file["name"] for file in job["files"] if file["name"].startswith("job-")]
        for method, path in [("GET", ""), ("GET", "/events"), ("GET", f"/files/{file}"), ("DELETE", "")]:
            own, foreign, unknown = [
                await http.request(method, f"/jobs/{asked}{path}", headers=key(name))
                for asked, name in [(job_id, "shop"), (job_id, "office"), (never, "office")]
            ]
            assert own.status_code in (200, 409), path
            assert (foreign.status_code, unknown.status_code) == (404, 404), path
            assert foreign.json() | {"status": 0} == json_about(unknown, never, job_id) | {"status": 0}, path
        watched = [await http.get(f"/jobs/{job_id}{path}", headers=key("watch")) for path in ("", "/events", f"/files/{file}")]
    assert job["tenant"] == "shop"
    assert [answer.status_code for answer in watched] == [200, 200, 200]


def json_about(answer: httpx.Response, asked: str, instead: str) -> dict[str, object]:
    return {name: value.replace(asked, instead) if isinstance(value, str) else value for name, value in answer.json().items()}


async def test_job_list_contains_only_own_tenant(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    async with start_worker(*JOB_ACTORS):
        ids = {}
        for name in ("shop", "office"):
            placed = await http.post("/jobs", json=order_body(), params={"wait": 20}, headers=key(name))
            ids[name] = placed.json()["job_id"]
            http.headers.update(key(name))
            await wait_until_job_ended(http, ids[name])
        seen = {name: await http.get("/jobs", params={"limit": 500}, headers=key(name)) for name in KEYS}
        foreign = await http.get("/jobs", params={"tenant": "office"}, headers=key("shop"))
        chosen = await http.get("/jobs", params={"tenant": "office", "limit": 500}, headers=key("watch"))
    listed = {name: {job["job_id"] for job in answer.json()["jobs"]} for name, answer in seen.items()}
    assert {job["tenant"] for job in seen["shop"].json()["jobs"]} == {"shop"}
    assert (ids["shop"] in listed["shop"], ids["office"] in listed["office"]) == (True, True)
    assert set(ids.values()) <= listed["watch"]
    assert (foreign.status_code, foreign.json()["title"]) == (403, "tenant-foreign")
    assert {job["tenant"] for job in chosen.json()["jobs"]} == {"office"}


async def test_operator_rights_are_required_for_other_tenants_and_dead_letters(
    http: httpx.AsyncClient, broker_client: BrokerClient
) -> None:
    """What is refused never becomes a message."""
    foreign = await http.post("/jobs", json=order_body(tenant="office"), headers=key("shop"))
    own = await http.post("/jobs", json=order_body(tenant="shop"), headers=key("shop"))
    other = await http.post("/jobs", json=order_body(tenant="office"), headers=key("watch"))
    letters = await http.get("/dead-letters", headers=key("shop"))
    assert [answer.status_code for answer in (foreign, own, other, letters)] == [403, 202, 202, 403]
    assert letters.json()["title"] == "operators-only"
    sent = [await broker_client.take_message(broker_names.work_queue("image")) for _ in range(2)]
    assert {letter.headers["atelier-tenant"] for letter in sent} == {"shop", "office"}


async def test_running_job_events_are_hidden_from_other_tenant(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    """Before the ledger knows of the job, too."""
    placed = await http.post("/jobs", json=order_body(), headers=key("shop"))
    path = f"/jobs/{placed.json()['job_id']}/events"
    async with start_worker(*JOB_ACTORS):
        own, foreign = await asyncio.gather(http.get(path, headers=key("shop")), http.get(path, headers=key("office")))
    assert parse_events(own.text)[-1]["event"] == "job.completed"
    assert (foreign.status_code, foreign.json()["title"]) == (404, "job-unknown")


async def test_idempotency_key_is_scoped_to_tenant(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    """The same Idempotency-Key of two tenants means two jobs; the owner of one just taken sees it."""
    said = {"Idempotency-Key": uuid4().hex}
    async with start_worker(*JOB_ACTORS):
        one, other = [await http.post("/jobs", json=order_body(), headers=said | key(name)) for name in ("shop", "office")]
        seen = await http.get(f"/jobs/{one.json()['job_id']}", headers=key("shop"))
        hidden = await http.get(f"/jobs/{one.json()['job_id']}", headers=key("office"))
    assert one.json()["job_id"] != other.json()["job_id"]
    assert (seen.status_code, seen.json()["tenant"], hidden.status_code) == (200, "shop", 404)
