"""The dead-letters API: operators only, filters, and who requested a change."""

from typing import Any

import pytest

from contracts.fault import Fault
from tests.support.fake_broker import Replier
from tests.unit.gateway.conftest import OpenFakeGateway

KEY = "k" * 32
AS_OPERATOR = {"api_keys": f"watch:{KEY}", "operators": "watch"}
SELECT_ALL = {"selection": {"everything": True}}
REPLIES: dict[str, Replier] = {
    "dead-letter.list": {"letters": [], "total": 0},
    "dead-letter.groups": {"groups": []},
    "dead-letter.replay": {"dry_run": True, "letters": 3},
    "dead-letter.get": Fault(code="dead-letter-unknown", message="unknown", step="dead-letter.get"),
}


async def test_tenant_is_forbidden(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway(REPLIES, api_keys=f"shop:{KEY}")
    responses = [
        await fake_gateway.http.get("/dead-letters", headers={"X-API-Key": KEY}),
        await fake_gateway.http.post("/dead-letters/replay", json=SELECT_ALL, headers={"X-API-Key": KEY}),
    ]
    assert [(response.status_code, response.json()["title"]) for response in responses] == [(403, "operators-only")] * 2
    assert fake_gateway.publisher.messages == []


async def test_filters_are_passed_without_empty_ones(gateway: OpenFakeGateway) -> None:
    fake_gateway = gateway(REPLIES)
    assert (await fake_gateway.http.get("/dead-letters", params={"step": "image", "code": "lora-missing"})).status_code == 200
    assert (await fake_gateway.http.get("/dead-letters/groups", params={"per": "day"})).status_code == 200
    (listed,), (grouped,) = fake_gateway.publisher.commands("dead-letter.list"), fake_gateway.publisher.commands("dead-letter.groups")
    assert listed == {"selection": {"step": "image", "code": "lora-missing", "everything": False}, "limit": 50, "offset": 0}
    assert (grouped["per"], grouped["by_tenant"]) == ("day", False)


@pytest.mark.parametrize(("settings", "headers", "by"), [({}, {}, "http"), (AS_OPERATOR, {"X-API-Key": KEY}, "watch")])
async def test_change_names_its_caller_and_is_a_dry_run_by_default(
    gateway: OpenFakeGateway, settings: dict[str, str], headers: dict[str, str], by: str
) -> None:
    fake_gateway = gateway(REPLIES, **settings)
    response = await fake_gateway.http.post("/dead-letters/replay", json=SELECT_ALL, headers=headers)
    (command,) = fake_gateway.publisher.commands("dead-letter.replay")
    assert (response.status_code, command["by"], command["dry_run"]) == (200, by, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/dead-letters/replay", {}),
        ("/dead-letters/replay", {"selection": {"stpe": "image"}}),
        ("/dead-letters/move", SELECT_ALL | {"to": "deleted"}),
        ("/dead-letters/x/edit", {"body": []}),
    ],
)
async def test_invalid_change_publishes_nothing(gateway: OpenFakeGateway, path: str, body: dict[str, Any]) -> None:
    fake_gateway = gateway(REPLIES)
    assert (await fake_gateway.http.post(path, json=body)).status_code == 422
    assert fake_gateway.publisher.messages == []


async def test_edited_body_must_be_standard_json(gateway: OpenFakeGateway) -> None:
    response = await gateway(REPLIES).http.post(
        "/dead-letters/x/edit", content='{"body": {"a": NaN}}', headers={"Content-Type": "application/json"}
    )
    assert (response.status_code, "JSON decode error" in response.text) == (422, True)


async def test_unknown_dead_letter_is_404(gateway: OpenFakeGateway) -> None:
    response = await gateway(REPLIES).http.get("/dead-letters/x")
    assert (response.status_code, response.json()["title"]) == (404, "dead-letter-unknown")
