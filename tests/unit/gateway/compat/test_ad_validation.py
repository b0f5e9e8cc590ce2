"""The ad-validation API: statuses of faults, tenants, invalid ids."""

from typing import Any

import pytest

from contracts.fault import Fault
from tests.support.fake_broker import Replier
from tests.unit.gateway.conftest import OpenFakeGateway

ID = "6f0e2b1e-3f6a-4f0e-9a43-0b1a7f6a2a11"
BODY = {"job_variants_id": ID, "job_id": ID, "tenant_id": "shop"}
KEY = "k" * 32
VALIDATE, JUDGE = "/api/yh/llava/stage1/validate", "/api/yh/llava/stage2/judge"
COMMON = {"job_id": ID, "vlm_trace_id": ID, "analysis": "fine", "issues": []}
VALID = COMMON | {"is_valid": True, "image_quality_ok": True, "relevance_score": 0.9, "recommendations": []}
JUDGED = COMMON | {"on_brief": True, "occlusion": False, "contrast_ok": True, "cta_present": True}


def fault(code: str) -> Fault:
    return Fault(code=code, message="cause", step="validate")


@pytest.mark.parametrize(("path", "step", "reply"), [(VALIDATE, "validate", VALID), (JUDGE, "judge", JUDGED)])
async def test_verdict_is_returned(gateway: OpenFakeGateway, path: str, step: str, reply: dict[str, Any]) -> None:
    fake_gateway = gateway({step: reply | {"unknown": 1}})
    response = await fake_gateway.http.post(path, json=BODY)
    assert response.status_code == 200
    assert response.json().items() >= reply.items()
    assert "unknown" not in response.json()
    assert fake_gateway.publisher.commands(step) == [BODY | {"default_verdict": True}]
    assert fake_gateway.publisher.messages[0].headers["atelier-tenant"] == "shop"


@pytest.mark.parametrize(
    ("reply", "status", "detail"),
    [
        (fault("job-not-found"), 404, "cause"),
        (fault("tenant-mismatch"), 400, "cause"),
        (fault("invalid-message"), 422, "cause"),
        (fault("out-of-memory"), 500, "LLaVa validation failed: cause"),
        (None, 500, "LLaVa validation failed: no reply within 0.01 s"),
    ],
)
async def test_fault_has_status_of_source_system(gateway: OpenFakeGateway, reply: Replier, status: int, detail: str) -> None:
    response = await gateway({"validate": reply}).http.post(VALIDATE, json=BODY, headers={"X-Request-Timeout": "0.01"})
    assert response.status_code == status
    assert response.json()["detail"].startswith(detail)
    assert list(response.json()) == ["detail"]


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    [
        (VALIDATE, {"job_id": "7"}, 400),
        (VALIDATE, {"job_variants_id": "x"}, 400),
        (JUDGE, {"overlay_id": "x"}, 400),
        (VALIDATE, {"tenant_id": "office"}, 403),
        (VALIDATE, {"prompt": "x" * 4001}, 422),
        (VALIDATE, {"job_id": None}, 422),
    ],
)
async def test_invalid_request_publishes_nothing(gateway: OpenFakeGateway, path: str, changes: dict[str, Any], status: int) -> None:
    fake_gateway = gateway(api_keys=f"shop:{KEY}")
    response = await fake_gateway.http.post(path, json=BODY | changes, headers={"X-API-Key": KEY})
    assert (response.status_code, list(response.json())) == (status, ["detail"])
    assert fake_gateway.publisher.messages == []


async def test_empty_tenant_is_not_replaced_by_caller(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway({"validate": VALID}, api_keys=f"watch:{KEY}", operators="watch")
    assert (await fake_gateway.http.post(VALIDATE, json=BODY | {"tenant_id": ""}, headers={"X-API-Key": KEY})).status_code == 200
    assert "atelier-tenant" not in fake_gateway.publisher.messages[0].headers
