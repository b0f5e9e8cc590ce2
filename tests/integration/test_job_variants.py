"""The source pipeline's notifications start validate and judge on a fake model server: none is missed or processed twice."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actors import judge, validate, variants
from actors.adapters.job_variants import build_pg_listener
from actors.settings import ListenerSettings
from bus.amqp.request_reply import ReplyFault
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_openai_server import AD_VERDICT, FakeOpenAiServer, open_fake_openai_server
from tests.support.source_system import GatewayClient, SourceDatabase, draw_text_picture, open_gateway_client, open_source_database

LISTENER = build_pg_listener(ListenerSettings(reconnect_delay=0.1, sweep_seconds=60))
RESULT_COUNT = "select count(*) from atelier.inbox where step = 'validate' and result ->> 'job_id' = $1"

TERMINATE_LISTENER = """
select count(pg_terminate_backend(pid)) from pg_stat_activity
where pid <> pg_backend_pid() and (query ilike 'listen %' or query ilike '%v.current_step in (%')
"""
"""Terminates the listener's connections, whichever query they ran last."""


@pytest.fixture
async def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FakeOpenAiServer]:
    async with open_fake_openai_server() as model:
        environment = {"VLM_ENGINE": "openai", "VLM_BASE_URL": model.url, "VLM_MODEL": "second", "ASSETS_DIR": str(tmp_path / "assets")}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield model


@pytest.fixture
async def source(database_url: str, tmp_path: Path, model: FakeOpenAiServer, start_worker: StartWorker) -> AsyncIterator[SourceDatabase]:
    """The source system with empty tables."""
    async with start_worker(variants.ACTOR):
        pass
    async with open_source_database(database_url, tmp_path / "assets") as source:
        await source.pool.execute(
            "truncate public.jobs, public.jobs_variants, public.vlm_traces, public.overlay_layouts, public.image_assets cascade"
        )
        yield source


@pytest.fixture
async def gateway_client(bus_settings: BusSettings, store_folder: Path, source: SourceDatabase) -> AsyncIterator[GatewayClient]:
    async with open_gateway_client(bus_settings, StoreSettings(store_url=store_folder.as_uri()), GATEWAY_READY_SECONDS="0.3") as client:
        yield client


async def wait_for_state(source: SourceDatabase, ids: dict[str, str], state: tuple[str, str]) -> None:
    async def reached() -> bool:
        return await source.variant_state(ids) == state

    await wait_until(reached)


async def variant_with_overlay(source: SourceDatabase) -> dict[str, str]:
    return await source.insert_variant(step="overlay", overlaid=await source.insert_picture(source.write_asset(draw_text_picture())))


async def test_finished_variant_is_processed_even_if_notification_was_missed(
    source: SourceDatabase, start_worker: StartWorker, model: FakeOpenAiServer
) -> None:
    before = [await source.insert_variant(), await variant_with_overlay(source)]
    others = [await source.insert_variant(step="planner"), await source.insert_variant(status="running")]
    async with start_worker(validate.ACTOR, judge.ACTOR, adapters=[LISTENER]):
        for ids, step in zip(before, ("vlm_analyze", "vlm_judge"), strict=True):
            await wait_for_state(source, ids, (step, "done"))
        after = await source.insert_variant(status="running")
        await source.pool.execute("update public.jobs_variants set status = 'done' where job_variants_id = $1", after["job_variants_id"])
        await wait_for_state(source, after, ("vlm_analyze", "done"))

    assert [await source.variant_state(ids) for ids in others] == [("planner", "done"), ("img_gen", "running")]
    assert len(model.requests) == 3


async def test_listener_reconnects_without_missing_variants(source: SourceDatabase, start_worker: StartWorker) -> None:
    async with start_worker(validate.ACTOR, adapters=[LISTENER]):
        first = await source.insert_variant()
        await wait_for_state(source, first, ("vlm_analyze", "done"))
        assert await source.pool.fetchval(TERMINATE_LISTENER) >= 1
        second = await source.insert_variant()
        await wait_for_state(source, second, ("vlm_analyze", "done"))

    assert [len(await source.vlm_traces(ids)) for ids in (first, second)] == [1, 1]


async def test_repeated_notification_creates_one_command(
    source: SourceDatabase, start_worker: StartWorker, model: FakeOpenAiServer
) -> None:
    """The source system updates variants that seem stuck. The second command returns the verdict of the first."""
    model.release_event = asyncio.Event()
    update_timestamp = "update public.jobs_variants set updated_at = now() where job_variants_id = $1"
    async with start_worker(adapters=[LISTENER]):
        ids = await source.insert_variant()
        for _ in range(3):
            await asyncio.sleep(0.05)
            await source.pool.execute(update_timestamp, ids["job_variants_id"])
    async with start_worker(validate.ACTOR):
        await model.request_semaphore.acquire()
        model.release_event.set()
        await wait_for_state(source, ids, ("vlm_analyze", "done"))

        async def all_answered() -> bool:
            return await source.pool.fetchval(RESULT_COUNT, ids["job_id"]) >= 2

        await wait_until(all_answered)
    async with start_worker(validate.ACTOR, adapters=[LISTENER]):
        pass

    assert len(await source.vlm_traces(ids)) == 1
    assert len(model.requests) == 1


async def test_reset_variant_is_judged_again(source: SourceDatabase, start_worker: StartWorker) -> None:
    async with start_worker(validate.ACTOR, adapters=[LISTENER]):
        ids = await source.insert_variant()
        await wait_for_state(source, ids, ("vlm_analyze", "done"))
        reset = "update public.jobs_variants set current_step = 'img_gen', updated_at = now() where job_variants_id = $1"
        await source.pool.execute(reset, ids["job_variants_id"])

        async def twice() -> bool:
            return len(await source.vlm_traces(ids)) == 2

        await wait_until(twice)
        await wait_for_state(source, ids, ("vlm_analyze", "done"))
    assert [trace["operation_type"] for trace in await source.vlm_traces(ids)] == ["analyze", "analyze"]


async def test_unparsable_verdict_is_retried_then_fails_variant(
    source: SourceDatabase, start_worker: StartWorker, model: FakeOpenAiServer, gateway_client: GatewayClient
) -> None:
    """An answer that holds no verdict is never stored as one, but on the source system's routes, which ask for its default verdict."""
    model.respond = lambda _: "I would rather write a poem."
    ids = await source.insert_variant()
    async with start_worker(validate.ACTOR, variants.ACTOR):
        with pytest.raises(ReplyFault, match="holds no verdict"):
            await gateway_client.requests.request("validate", ids, seconds=60)
        await wait_for_state(source, ids, ("vlm_analyze", "failed"))

    assert len(model.requests) == 3
    assert await source.vlm_traces(ids) == []


async def test_repaired_verdict_is_marked(
    source: SourceDatabase, start_worker: StartWorker, model: FakeOpenAiServer, gateway_client: GatewayClient
) -> None:
    model.respond = lambda body: 400 if "response_format" in body else f"Here it is: {json.dumps(AD_VERDICT)}"
    ids = await variant_with_overlay(source)
    async with start_worker(judge.ACTOR):
        answer = await gateway_client.http.post("/api/yh/llava/stage2/judge", json=ids)

    assert (answer.status_code, answer.json()["repaired"]) == (200, True)


async def test_health_is_loading_and_predict_not_ready_without_actor(gateway_client: GatewayClient) -> None:
    health, predict = await gateway_client.http.get("/health"), await gateway_client.http.post("/predict", json={"instances": [{}]})

    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    assert (predict.status_code, predict.json()) == (503, {"error": "Model not ready"})


@asynccontextmanager
async def crashing_worker(
    point: str, marker: Path, environment: Mapping[str, str], *steps: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process that kills itself at the crash point, once."""
    arguments = [sys.executable, "-m", "tests.support.crash_points", point, str(marker), *steps]
    process = await asyncio.create_subprocess_exec(*arguments, env=dict(environment))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("point", ["before-mark-done", "before-publish", "before-ack"])
async def test_redelivery_after_kill_gives_one_trace_and_one_reply(
    source: SourceDatabase,
    broker_client: BrokerClient,
    bus_settings: BusSettings,
    store_folder: Path,
    tmp_path: Path,
    start_worker: StartWorker,
    model: FakeOpenAiServer,
    point: str,
) -> None:
    """Killed before the outcome is stored, before it is published, and before the ack. The next worker publishes the same reply."""
    ids = await variant_with_overlay(source)
    assert bus_settings.database_url
    environment = os.environ | {
        "AMQP_URL": bus_settings.amqp_url.get_secret_value(),
        "DATABASE_URL": bus_settings.database_url.get_secret_value(),
        "STORE_URL": store_folder.as_uri(),
    }
    async with crashing_worker(point, tmp_path / "died", environment, "judge") as process:
        await broker_client.publish("judge", ids, reply_to=broker_client.reply_queue, correlation_id="j")
        assert await asyncio.wait_for(process.wait(), 30) == -9
    async with start_worker(judge.ACTOR):
        expected = 2 if point == "before-ack" else 1
        replies = [await asyncio.wait_for(broker_client.replies.get(), 20) for _ in range(expected)]
        await wait_for_state(source, ids, ("vlm_judge", "done"))

    traces = await source.vlm_traces(ids)
    assert len({(reply.message_id, reply.body) for reply in replies}) == 1
    assert [str(trace["vlm_trace_id"]) for trace in traces] == [json.loads(replies[0].body)["vlm_trace_id"]]
    assert len(model.requests) == (2 if point == "before-mark-done" else 1)
