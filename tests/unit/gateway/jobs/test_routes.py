"""The jobs API without a broker: responses of a submission, lists, cancellation."""

from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.broker_names import CONTROL_EXCHANGE
from contracts.fault import Fault
from tests.support.fake_broker import Replier
from tests.unit.gateway.conftest import OpenFakeGateway

ORDER = {"kind": "image_order", "prompt": "harbour"}
KEY = "k" * 32
NOW = datetime(2026, 11, 21, tzinfo=UTC).isoformat()


def job(state: str) -> dict[str, Any]:
    return {"job_id": "j-1", "state": state, "tenant": "shop", "created_at": NOW, "updated_at": NOW}


@pytest.mark.parametrize(
    ("query", "headers", "status", "preference"),
    [
        ("", {}, 202, None),
        ("?wait=5", {}, 200, None),
        ("", {"Prefer": "wait=5"}, 200, "wait=5"),
        ("?wait=0", {"Prefer": "wait=5"}, 202, None),
    ],
)
async def test_submission_returns_202_or_awaited_result_with_links(
    gateway: OpenFakeGateway, query: str, headers: dict[str, str], status: int, preference: str | None
) -> None:
    response = await gateway({"image": {"result_url": "x"}}).http.post(f"/jobs{query}", json=ORDER, headers=headers)
    body = response.json()
    assert (response.status_code, response.headers.get("preference-applied")) == (status, preference)
    assert response.headers["location"] == body["links"]["self"] == f"/jobs/{body['job_id']}"
    assert body.get("result") == ({"result_url": "x"} if status == 200 else None)


async def test_order_is_published_for_its_tenant(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway(api_keys=f"shop:{KEY} watch:{KEY}2", operators="watch")
    for key, body in [(KEY, ORDER), (f"{KEY}2", ORDER | {"tenant": "office"}), (f"{KEY}2", ORDER)]:
        assert (await fake_gateway.http.post("/jobs", json=body, headers={"X-API-Key": key})).status_code == 202
    refused = await fake_gateway.http.post("/jobs", json=ORDER | {"tenant": "office"}, headers={"X-API-Key": KEY})
    assert refused.status_code == 403
    tenants = [message.headers["atelier-tenant"] for message in fake_gateway.publisher.messages if message.routing_key == "image"]
    assert tenants == ["shop", "office", "watch"]


async def test_list_passes_filters_without_empty_ones(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway({"job.list": {"jobs": []}})
    assert (await fake_gateway.http.get("/jobs", params={"state": "failed", "before": "2026-01-01T00:00:00Z"})).json() == {"jobs": []}
    assert fake_gateway.publisher.commands("job.list") == [{"state": "failed", "before": "2026-01-01T00:00:00+00:00", "limit": 50}]


@pytest.mark.parametrize(
    ("reply", "key", "status", "is_cancelled"),
    [
        (job("running"), KEY, 202, True),
        (job("completed"), KEY, 409, False),
        (Fault(code="job-unknown", message="unknown", step="job.get"), KEY, 404, False),
        (None, KEY, 504, False),
        (None, f"{KEY}2", 202, True),
    ],
)
async def test_running_job_is_cancelled_and_ended_or_unknown_job_is_not(
    gateway: OpenFakeGateway, reply: Replier, key: str, status: int, is_cancelled: bool
) -> None:
    """Without the ledger, only an operator may cancel: the job's tenant is unknown."""
    fake_gateway = gateway({"job.get": reply}, api_keys=f"shop:{KEY} watch:{KEY}2", operators="watch", question_seconds=0.02)
    response = await fake_gateway.http.delete("/jobs/j-1", headers={"X-API-Key": key})
    assert response.status_code == status
    assert any(message.exchange == CONTROL_EXCHANGE for message in fake_gateway.publisher.messages) is is_cancelled
