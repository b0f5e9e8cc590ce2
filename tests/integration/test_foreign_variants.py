"""One tenant's messages about another tenant's variant, overlay or picture. Real broker, tables and actors, a fake model server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from actors import judge, ledger, overlay, validate, variants
from bus.amqp.request_reply import ReplyFault, RequestClient
from bus.settings import BusSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts import broker_names
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_openai_server import FakeOpenAiServer, open_fake_openai_server
from tests.support.gateway_app import wait_until_job_ended
from tests.support.source_system import GatewayClient, SourceDatabase, draw_text_picture, open_gateway_client, open_source_database

ACTORS = (*ledger.ACTORS, validate.ACTOR, judge.ACTOR, overlay.ACTOR, variants.ACTOR)
KEYS = {name: f"{name}-{'k' * 32}" for name in ("tenant-1", "office", "watch")}
STEPS = {"validate": "img_gen", "judge": "overlay"}
"""The step at which a variant waits for each of the two."""
ROUTES = {"validate": "/api/yh/llava/stage1/validate", "judge": "/api/yh/llava/stage2/judge"}


@pytest.fixture
async def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FakeOpenAiServer]:
    async with open_fake_openai_server() as model:
        environment = {"VLM_ENGINE": "openai", "VLM_BASE_URL": model.url, "VLM_MODEL": "second", "ASSETS_DIR": str(tmp_path / "assets")}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield model


@pytest.fixture
async def gateway(
    bus_settings: BusSettings, store_folder: Path, model: FakeOpenAiServer, start_worker: StartWorker, purged_queues: None
) -> AsyncIterator[GatewayClient]:
    """A gateway with the keys of two tenants and an operator, and the actors."""
    keys = {"GATEWAY_API_KEYS": " ".join(f"{name}:{key}" for name, key in KEYS.items()), "GATEWAY_OPERATORS": "watch"}
    store = StoreSettings(store_url=store_folder.as_uri())
    async with start_worker(*ACTORS), open_gateway_client(bus_settings, store, GATEWAY_HEALTH_NEEDS_CONSULT="false", **keys) as client:
        yield client


@pytest.fixture
async def source(database_url: str, tmp_path: Path, gateway: GatewayClient) -> AsyncIterator[SourceDatabase]:
    """The source system; its variants belong to `tenant-1`."""
    async with open_source_database(database_url, tmp_path / "assets") as source:
        yield source


async def waiting_variant(source: SourceDatabase, step: str) -> dict[str, str]:
    picture = await source.insert_picture(source.write_asset(draw_text_picture()))
    return await source.insert_variant(step=STEPS[step], overlaid=picture if step == "judge" else None)


async def ask(requests: RequestClient, step: str, body: dict[str, Any], tenant: str | None) -> dict[str, Any] | str:
    """The result, or the code of the fault."""
    try:
        return await requests.request(step, body, seconds=20, tenant=tenant)
    except ReplyFault as error:
        return error.fault.code


async def assert_unchanged(source: SourceDatabase, ids: dict[str, str], step: str) -> None:
    assert await source.variant_state(ids) == (STEPS[step], "done")
    assert await source.vlm_traces(ids) == []
    assert await source.pool.fetchval("select count(*) from atelier.variant_work where job_variants_id = $1", ids["job_variants_id"]) == 0


@pytest.mark.parametrize("step", STEPS)
async def test_body_that_names_another_tenant_is_refused(
    gateway: GatewayClient, source: SourceDatabase, model: FakeOpenAiServer, step: str
) -> None:
    """With ids and without them."""
    ids = await waiting_variant(source, step)
    assert await ask(gateway.requests, step, ids, "office") == "tenant-foreign"
    assert await ask(gateway.requests, step, {"tenant_id": "tenant-1"}, "office") == "tenant-foreign"
    await assert_unchanged(source, ids, step)
    assert model.requests == []


@pytest.mark.parametrize("step", STEPS)
async def test_variant_of_another_tenant_is_unknown(gateway: GatewayClient, source: SourceDatabase, step: str) -> None:
    """The fault is the same as for an id that does not exist, whatever else of the variant is named."""
    ids = await waiting_variant(source, step)
    missing = {"job_variants_id": str(uuid4()), "job_id": str(uuid4())}
    faults = []
    for body in (ids | {"tenant_id": "office"}, {**ids, "tenant_id": None}, ids | {"tenant_id": "office", "job_id": str(uuid4())}, missing):
        with pytest.raises(ReplyFault) as raised:
            await gateway.requests.request(step, body, seconds=20, tenant="office")
        faults.append((raised.value.fault.code, raised.value.fault.message.replace(body["job_variants_id"] or "", "ID")))
    assert faults == [("variant-unknown", "Job variant not found: ID")] * 4
    await assert_unchanged(source, ids, step)


@pytest.mark.parametrize("step", STEPS)
async def test_itinerary_cannot_reach_variant_of_another_tenant(gateway: GatewayClient, source: SourceDatabase, step: str) -> None:
    ids = await waiting_variant(source, step)
    gateway.http.headers["X-API-Key"] = KEYS["office"]
    codes = []
    for fields in (ids, ids | {"tenant_id": "office"}):
        body = {"kind": "itinerary", "stops": [{"step": step, "arguments": fields}]}
        submitted = await gateway.http.post("/jobs", json=body)
        codes.append((await wait_until_job_ended(gateway.http, submitted.json()["job_id"]))["fault"]["code"])
    assert codes == ["tenant-foreign", "variant-unknown"]
    await assert_unchanged(source, ids, step)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("tenant", "named"), [("tenant-1", True), ("tenant-1", False), (None, True)])
async def test_variant_is_found_by_its_tenant_and_by_the_installation(
    gateway: GatewayClient, source: SourceDatabase, step: str, tenant: str | None, named: bool
) -> None:
    """A tenant need not repeat its name in the body."""
    ids = await waiting_variant(source, step)
    result = await ask(gateway.requests, step, ids if named else ids | {"tenant_id": None}, tenant)
    assert isinstance(result, dict), result
    assert len(await source.vlm_traces(ids)) == 1


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("key", "named", "status", "detail"),
    [
        ("tenant-1", "tenant-1", 200, None),
        ("office", "tenant-1", 403, "This key belongs to the tenant 'office'"),
        ("office", "office", 404, "Job variant not found: "),
        ("watch", "tenant-1", 200, None),
        ("watch", "office", 400, "Job tenant_id mismatch"),
    ],
)
async def test_verdict_route_keeps_the_source_systems_answers(
    gateway: GatewayClient, source: SourceDatabase, step: str, key: str, named: str, status: int, detail: str | None
) -> None:
    """An operator, who sees all tenants, gets the source system's answer about a mismatch; a tenant does not."""
    ids = await waiting_variant(source, step)
    response = await gateway.http.post(ROUTES[step], json=ids | {"tenant_id": named}, headers={"X-API-Key": KEYS[key]})
    assert response.status_code == status, response.text
    if detail:
        assert response.json()["detail"].startswith(detail)
        await assert_unchanged(source, ids, step)


async def test_overlay_of_another_variant_is_unknown(gateway: GatewayClient, source: SourceDatabase, model: FakeOpenAiServer) -> None:
    ids, other = await waiting_variant(source, "judge"), await waiting_variant(source, "judge")
    foreign = await source.insert_overlay(other, {"render": {"url": source.write_asset(draw_text_picture())}})
    assert await ask(gateway.requests, "judge", ids | {"overlay_id": foreign}, "tenant-1") == "overlay-unknown"
    assert model.requests == []


async def test_render_address_must_be_recorded_for_the_variant(
    gateway: GatewayClient, source: SourceDatabase, model: FakeOpenAiServer
) -> None:
    ids, other = await waiting_variant(source, "judge"), await waiting_variant(source, "judge")
    own, foreign = source.write_asset(draw_text_picture()), source.write_asset(draw_text_picture())
    await source.insert_overlay(ids, {"render": {"url": own}})
    await source.insert_overlay(other, {"render": {"url": foreign}})
    assert await ask(gateway.requests, "judge", ids | {"render_asset_url": foreign}, "tenant-1") == "render-foreign"
    assert model.requests == []
    await assert_unchanged(source, ids, "judge")
    assert isinstance(await ask(gateway.requests, "judge", ids | {"render_asset_url": own}, "tenant-1"), dict)


@pytest.mark.parametrize("key", ["watch", None])
async def test_any_render_address_is_accepted_from_operators_and_the_installation(
    gateway: GatewayClient, source: SourceDatabase, key: str | None
) -> None:
    """As the source system promises: the address in the body has precedence."""
    ids, url = await waiting_variant(source, "judge"), source.write_asset(draw_text_picture())
    if key:
        response = await gateway.http.post(ROUTES["judge"], json=ids | {"render_asset_url": url}, headers={"X-API-Key": KEYS[key]})
        assert response.status_code == 200, response.text
    else:
        assert isinstance(await ask(gateway.requests, "judge", ids | {"render_asset_url": url}, None), dict)
    (trace,) = await source.vlm_traces(ids)
    assert trace["request"]["render_asset_url"] == url


@pytest.mark.parametrize(("tenant", "is_stored"), [("tenant-1", True), (None, True), ("office", False)])
async def test_overlay_layout_is_stored_for_the_tenants_variant_only(
    gateway: GatewayClient, source: SourceDatabase, store_folder: Path, tenant: str | None, is_stored: bool
) -> None:
    ids = await source.insert_variant(step="planner")
    claim = await write_picture(store_folder, tenant)
    body = {"images": [claim], "text": "Sale", "job_variants_id": ids["job_variants_id"]}
    result = await ask(gateway.requests, "overlay", body, tenant)
    assert isinstance(result, dict) if is_stored else result == "variant-unknown"
    count = await source.pool.fetchval("select count(*) from public.overlay_layouts where job_variants_id = $1", ids["job_variants_id"])
    assert count == int(is_stored)


async def write_picture(store_folder: Path, tenant: str | None) -> dict[str, Any]:
    async with open_claim_store(StoreSettings(store_url=store_folder.as_uri())) as claims:
        claim = await claims.write(draw_text_picture(), media_type="image/png", tenant=tenant)
    return claim.model_dump(mode="json", exclude_none=True)


async def test_event_of_another_tenant_fails_no_variant(
    gateway: GatewayClient, source: SourceDatabase, broker_client: BrokerClient
) -> None:
    """Of two `failed` events about the message that worked on the variant, the foreign one changes nothing."""
    ids, message_id = await waiting_variant(source, "validate"), uuid4().hex
    insert = "insert into atelier.variant_work (message_id, step, job_variants_id) values ($1, 'vlm_analyze', $2)"
    await source.pool.execute(insert, message_id, ids["job_variants_id"])
    other = await waiting_variant(source, "validate")
    await source.pool.execute(insert, f"{message_id}-2", other["job_variants_id"])

    async def publish_failed(message: str, tenant: str) -> None:
        job_id = uuid4().hex
        event = {"kind": "failed", "step": "validate", "job_id": job_id, "at": "2026-01-01T00:00:00Z", "message_id": message}
        key = broker_names.event_routing_key("validate", "failed", job_id)
        await broker_client.publish(key, event | {"tenant": tenant}, exchange=broker_names.EVENTS_EXCHANGE)

    await publish_failed(message_id, "office")
    await publish_failed(f"{message_id}-2", "tenant-1")

    async def own_event_is_applied() -> bool:
        return await source.variant_state(other) == ("vlm_analyze", "failed")

    await wait_until(own_event_is_applied)
    assert await source.variant_state(ids) == ("img_gen", "done")
