"""The source pipeline's NOTIFY drives validate and judge; nothing is missed and nothing is done twice, whoever dies. A server sees."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actors import judge, validate, variants
from actors.adapters.job_variants import ListenerSettings, trigger
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from tests.integration.conftest import Customer, Workshop, soon
from tests.integration.seeing import Front, Source, lettered, open_front, open_source
from tests.model_server import AD_VERDICT, ModelServer, open_model_server

LISTENER = trigger(ListenerSettings(reconnect_delay=0.1, sweep_seconds=60))
ANSWERED = "select count(*) from atelier.inbox where step = 'validate' and result ->> 'job_id' = $1"

CUT = """
select count(pg_terminate_backend(pid)) from pg_stat_activity
where pid <> pg_backend_pid() and (query ilike 'listen %' or query ilike '%v.current_step in (%')
"""
"""Ends the trigger's connection, whichever query it ran last."""


@pytest.fixture
async def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[ModelServer]:
    async with open_model_server() as model:
        told = {"VLM_ENGINE": "openai", "VLM_BASE_URL": model.url, "VLM_MODEL": "second", "ASSETS_DIR": str(tmp_path / "assets")}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        yield model


@pytest.fixture
async def source(database_url: str, tmp_path: Path, model: ModelServer, workshop: Workshop) -> AsyncIterator[Source]:
    """The source system, with nothing left over from another test."""
    async with workshop(variants.ACTOR):
        pass
    async with open_source(database_url, tmp_path / "assets") as source:
        await source.pool.execute(
            "truncate public.jobs, public.jobs_variants, public.vlm_traces, public.overlay_layouts, public.image_assets cascade"
        )
        yield source


@pytest.fixture
async def front(bus_settings: BusSettings, store_folder: Path, source: Source) -> AsyncIterator[Front]:
    async with open_front(bus_settings, StoreSettings(store_url=store_folder.as_uri()), GATEWAY_READY_SECONDS="0.3") as front:
        yield front


async def reaches(source: Source, ids: dict[str, str], state: tuple[str, str]) -> None:
    async def there() -> bool:
        return await source.state(ids) == state

    await soon(there)


async def judgeable(source: Source) -> dict[str, str]:
    return await source.variant(step="overlay", overlaid=await source.picture(source.asset(lettered())))


async def test_a_variant_is_taken_when_it_is_done_and_when_nobody_listened(source: Source, workshop: Workshop, model: ModelServer) -> None:
    before = [await source.variant(), await judgeable(source)]
    others = [await source.variant(step="planner"), await source.variant(status="running")]
    async with workshop(validate.ACTOR, judge.ACTOR, adapters=[LISTENER]):
        for ids, step in zip(before, ("vlm_analyze", "vlm_judge"), strict=True):
            await reaches(source, ids, (step, "done"))
        after = await source.variant(status="running")
        await source.pool.execute("update public.jobs_variants set status = 'done' where job_variants_id = $1", after["job_variants_id"])
        await reaches(source, after, ("vlm_analyze", "done"))

    assert [await source.state(ids) for ids in others] == [("planner", "done"), ("img_gen", "running")]
    assert len(model.questions) == 3


async def test_a_lost_connection_is_opened_again_and_nothing_is_missed(source: Source, workshop: Workshop) -> None:
    async with workshop(validate.ACTOR, adapters=[LISTENER]):
        first = await source.variant()
        await reaches(source, first, ("vlm_analyze", "done"))
        assert await source.pool.fetchval(CUT) >= 1
        second = await source.variant()
        await reaches(source, second, ("vlm_analyze", "done"))

    assert [len(await source.traces(ids)) for ids in (first, second)] == [1, 1]


async def test_a_touch_while_the_command_waits_does_nothing_twice(source: Source, workshop: Workshop, model: ModelServer) -> None:
    """The source system touches what it thinks is stuck. The second command is answered with the first one's verdict."""
    model.hold = asyncio.Event()
    touch = "update public.jobs_variants set updated_at = now() where job_variants_id = $1"
    async with workshop(adapters=[LISTENER]):
        ids = await source.variant()
        for _ in range(3):
            await asyncio.sleep(0.05)
            await source.pool.execute(touch, ids["job_variants_id"])
    async with workshop(validate.ACTOR):
        await model.arrived.acquire()
        model.hold.set()
        await reaches(source, ids, ("vlm_analyze", "done"))

        async def all_answered() -> bool:
            return await source.pool.fetchval(ANSWERED, ids["job_id"]) >= 2

        await soon(all_answered)
    async with workshop(validate.ACTOR, adapters=[LISTENER]):
        pass

    assert len(await source.traces(ids)) == 1
    assert len(model.questions) == 1


async def test_a_variant_that_is_set_back_is_judged_anew(source: Source, workshop: Workshop) -> None:
    async with workshop(validate.ACTOR, adapters=[LISTENER]):
        ids = await source.variant()
        await reaches(source, ids, ("vlm_analyze", "done"))
        again = "update public.jobs_variants set current_step = 'img_gen', updated_at = now() where job_variants_id = $1"
        await source.pool.execute(again, ids["job_variants_id"])

        async def twice() -> bool:
            return len(await source.traces(ids)) == 2

        await soon(twice)


async def test_a_verdict_that_cannot_be_read_is_tried_again_and_then_fails_the_variant(
    source: Source, workshop: Workshop, model: ModelServer, front: Front
) -> None:
    """It never looks like a real verdict."""
    model.say = lambda _: "I would rather write a poem."
    ids = await source.variant()
    async with workshop(validate.ACTOR, variants.ACTOR):
        answer = await front.http.post("/api/yh/llava/stage1/validate", json=ids)
        await reaches(source, ids, ("vlm_analyze", "failed"))

    assert answer.status_code == 500
    assert "holds no verdict" in answer.json()["detail"]
    assert len(model.questions) == 3
    assert await source.traces(ids) == []


async def test_a_mended_verdict_says_so(source: Source, workshop: Workshop, model: ModelServer, front: Front) -> None:
    model.say = lambda body: 400 if "response_format" in body else f"Here it is: {json.dumps(AD_VERDICT)}"
    ids = await judgeable(source)
    async with workshop(judge.ACTOR):
        answer = await front.http.post("/api/yh/llava/stage2/judge", json=ids)

    assert (answer.status_code, answer.json()["repaired"]) == (200, True)


async def test_without_an_actor_health_is_loading_and_predict_is_not_ready(front: Front) -> None:
    health, predict = await front.http.get("/health"), await front.http.post("/predict", json={"instances": [{}]})

    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    assert (predict.status_code, predict.json()) == (503, {"error": "Model not ready"})


@asynccontextmanager
async def dying(point: str, marker: Path, environment: Mapping[str, str], *steps: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that kills itself at the point, once."""
    words = [sys.executable, "-m", "tests.dying", point, str(marker), *steps]
    process = await asyncio.create_subprocess_exec(*words, env=dict(environment))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("point", ["before-remember", "before-publish", "before-ack"])
async def test_redelivered_after_a_kill_there_is_one_trace_and_one_answer(
    source: Source,
    customer: Customer,
    bus_settings: BusSettings,
    store_folder: Path,
    tmp_path: Path,
    workshop: Workshop,
    model: ModelServer,
    point: str,
) -> None:
    """Killed with the verdict in hand; committed but unsaid; said but not acked. Whoever comes next finishes it, and says the same."""
    ids = await judgeable(source)
    assert bus_settings.database_url
    environment = os.environ | {
        "AMQP_URL": bus_settings.amqp_url.get_secret_value(),
        "DATABASE_URL": bus_settings.database_url.get_secret_value(),
        "STORE_URL": store_folder.as_uri(),
    }
    async with dying(point, tmp_path / "died", environment, "judge") as process:
        await customer.send("judge", ids, reply_to=customer.reply_queue, correlation_id="j")
        assert await asyncio.wait_for(process.wait(), 30) == -9
    async with workshop(judge.ACTOR):
        expected = 2 if point == "before-ack" else 1
        replies = [await asyncio.wait_for(customer.replies.get(), 20) for _ in range(expected)]
        await reaches(source, ids, ("vlm_judge", "done"))

    traces = await source.traces(ids)
    assert len({(reply.message_id, reply.body) for reply in replies}) == 1
    assert [str(trace["vlm_trace_id"]) for trace in traces] == [json.loads(replies[0].body)["vlm_trace_id"]]
    assert len(model.questions) == (2 if point == "before-remember" else 1)
