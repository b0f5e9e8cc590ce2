"""Health and job queries, by HTTP calls into the application on a real broker."""

from collections.abc import AsyncIterator

import httpx
import pytest

from actors.ledger import ACTORS
from bus.settings import BusSettings
from contracts import broker_names
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.support.broker_client import BrokerClient, StartWorker, wait_until


@pytest.fixture
async def http(bus_settings: BusSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(bus_settings, GatewaySettings(question_seconds=1))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        yield client


async def test_health_reports_broker_state(http: httpx.AsyncClient) -> None:
    response = await http.get("/health")
    assert (response.status_code, response.json()["status"], response.json()["broker"]) == (200, "healthy", True)


async def test_job_state_is_requested_from_ledger(http: httpx.AsyncClient, start_worker: StartWorker, broker_client: BrokerClient) -> None:
    event = {"kind": "completed", "step": "job", "job_id": "j-77", "at": "2026-01-01T00:00:00Z", "message_id": "m", "result": {"a": 1}}
    async with start_worker(*ACTORS):
        await broker_client.publish(
            broker_names.event_routing_key("job", "completed", "j-77"), event, exchange=broker_names.EVENTS_EXCHANGE
        )

        async def is_recorded() -> bool:
            return (await http.get("/jobs/j-77")).status_code == 200

        await wait_until(is_recorded)
        job = (await http.get("/jobs/j-77")).json()
        assert (job["state"], job["result"]) == ("completed", {"a": 1})
        listed = (await http.get("/jobs", params={"state": "completed", "words": "j-77"})).json()["jobs"]
        assert "j-77" in [job["job_id"] for job in listed]  # other tests may have made hundreds of later jobs


async def test_unknown_job_returns_problem_document(http: httpx.AsyncClient, start_worker: StartWorker) -> None:
    async with start_worker(*ACTORS):
        response = await http.get("/jobs/never")
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")
    assert response.json()["title"] == "job-unknown"


async def test_job_query_without_ledger_times_out(http: httpx.AsyncClient) -> None:
    response = await http.get("/jobs/any")
    assert (response.status_code, response.json()["title"]) == (504, "no reply in time")


async def test_invalid_filter_is_rejected(http: httpx.AsyncClient) -> None:
    assert (await http.get("/jobs", params={"limit": 0})).status_code == 422
