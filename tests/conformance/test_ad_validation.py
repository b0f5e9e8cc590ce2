"""The promises of the ad-validation pipeline, in the order of its document. The broker, the database, the gateway, the listener and the
actors are real; the model's answers come from a server of the test, so that a test can decide them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from actors import judge, validate, variants
from actors.adapters.job_variants import build_pg_listener
from actors.engines.language.requests import VlmResponse
from actors.settings import ListenerSettings
from actors.vision.settings import VisionSettings, VlmSettings
from actors.vision.verdict_parser import parse_verdict
from bus.amqp.request_reply import ReplyFault
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts.verdict import ImageAnswer, ImageVerdictSchema
from ops.local.postgres import EmbeddedPostgres
from ops.local.rabbitmq import RabbitNode
from ops.registry import MODULES
from tests.support.broker_client import wait_until
from tests.support.fake_openai_server import AD_VERDICT, IMAGE_VERDICT, FakeOpenAiServer, default_response, open_fake_openai_server
from tests.support.source_system import GatewayClient, SourceDatabase, draw_text_picture, open_gateway_client, open_source_database

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
promise = pytest.mark.promise

STAGE1, STAGE2 = "/api/yh/llava/stage1/validate", "/api/yh/llava/stage2/judge"
MISSING = "00000000-0000-0000-0000-000000000001"
POEM = "I would rather write a poem."
DOCUMENTED = IMAGE_VERDICT | {"font_recommendation": {"style": "bold", "size": "large", "color": "light"}}
"""A verdict in the fields of the document's prompt."""


@dataclass(frozen=True)
class Pipeline:
    """The running pipeline: its gateway, its tables, the model behind it."""

    gateway: GatewayClient
    source: SourceDatabase
    model: FakeOpenAiServer
    database_url: str

    async def validate(self, ids: dict[str, str], **body: Any) -> Any:
        return await self.gateway.http.post(STAGE1, json=ids | body)

    async def judge(self, ids: dict[str, str], **body: Any) -> Any:
        return await self.gateway.http.post(STAGE2, json=ids | body)

    async def overlaid(self, **columns: Any) -> dict[str, str]:
        """A variant that may be judged."""
        picture = await self.source.insert_picture(self.source.write_asset(draw_text_picture()))
        return await self.source.insert_variant(**{"step": "overlay", "overlaid": picture} | columns)

    def prompts(self) -> list[str]:
        return [part["text"] for request in self.model.requests for part in request["messages"][0]["content"] if part["type"] == "text"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(rabbitmq: RabbitNode, postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pipeline]:
    folder = tmp_path_factory.mktemp("ad-validation")
    values = {"amqp_url": rabbitmq.url, "database_url": postgres.url, "retry_delays_seconds": (0.1,), "long_delays_seconds": (0.5,)}
    bus, store = BusSettings.model_validate(values), StoreSettings(store_url=(folder / "store").as_uri())
    async with AsyncExitStack() as resources:
        model = await resources.enter_async_context(open_fake_openai_server())
        environment = {"VLM_ENGINE": "openai", "VLM_BASE_URL": model.url, "VLM_MODEL": "second", "ASSETS_DIR": str(folder / "assets")}
        patch = resources.enter_context(pytest.MonkeyPatch.context())
        for name, value in environment.items():
            patch.setenv(name, value)
        await resources.enter_async_context(Worker([validate.ACTOR, judge.ACTOR, variants.ACTOR], [], bus, store).run())
        source = await resources.enter_async_context(open_source_database(postgres.url, folder / "assets"))
        yield Pipeline(await resources.enter_async_context(open_gateway_client(bus, store)), source, model, postgres.url)


@pytest.fixture
def pipeline(stack: Pipeline) -> Pipeline:
    stack.model.respond, stack.model.requests[:] = default_response, []
    return stack


# -- Stage 1


@promise("Stage 1", "POST stage1/validate with job_variants_id, job_id and tenant_id returns the verdict and the id of its trace")
@promise("Stage 1", "the verdict has is_valid, quality, score, analysis, issues, recommendations and a font")
async def test_validated_variant_has_a_verdict_and_a_trace(pipeline: Pipeline) -> None:
    ids = await pipeline.source.insert_variant(job=await pipeline.source.insert_job(desc_eng="fresh bread"))
    response = await pipeline.validate(ids)
    (trace,) = await pipeline.source.vlm_traces(ids)
    expected = IMAGE_VERDICT | {"job_id": ids["job_id"], "vlm_trace_id": str(trace["vlm_trace_id"])}
    assert (response.status_code, response.json()) == (200, expected | {"repaired": False, "defaulted": False})


@promise("Stage 1", "the variant is at (vlm_analyze, running), then done, and each change notifies the listeners")
async def test_state_of_the_variant_is_kept(pipeline: Pipeline) -> None:
    ids, states = await pipeline.source.insert_variant(), []
    listener = await asyncpg.connect(pipeline.database_url)
    await listener.add_listener("job_variant_state_changed", lambda *args: states.append(json.loads(args[3])))
    await pipeline.validate(ids)
    await wait_until(lambda: done(pipeline, ids))
    await listener.close()
    own = [(state["current_step"], state["status"]) for state in states if state["job_variants_id"] == ids["job_variants_id"]]
    assert own == [("vlm_analyze", "running"), ("vlm_analyze", "done")]


async def done(pipeline: Pipeline, ids: dict[str, str]) -> bool:
    return (await pipeline.source.variant_state(ids))[1] == "done"


@promise("Stage 1", "the text is the request's, else the latest finished ad_copy_eng of the job, else its desc_eng")
async def test_text_comes_from_the_first_place_that_has_one(pipeline: Pipeline) -> None:
    job = await pipeline.source.insert_job(desc_eng="described")
    insert = """insert into public.txt_ad_copy_generations (ad_copy_gen_id, job_id, generation_stage, ad_copy_eng, status, created_at)
        values (gen_random_uuid(), $1, 'ad_copy_eng', $2, $3, now() + $4 * interval '1 second')"""
    texts = []
    for copy, body in (
        (None, {}),
        (("old", "done", 0), {}),
        (("new", "done", 1), {}),
        (("late", "queued", 2), {}),
        (None, {"ad_copy_text": "own"}),
    ):
        if copy:
            await pipeline.source.pool.execute(insert, job, *copy)
        ids = await pipeline.source.insert_variant(job=job)
        await pipeline.validate(ids, **body)
        texts.append((await pipeline.source.vlm_traces(ids))[0]["request"]["ad_copy_text"])
    assert texts == ["described", "old", "new", "new", "own"]


@promise("Stage 1", "a prompt in the request replaces the usual one")
async def test_own_prompt_is_asked(pipeline: Pipeline) -> None:
    await pipeline.validate(await pipeline.source.insert_variant(), prompt="Is it blue?")
    assert pipeline.prompts() == ["Is it blue?"]


@promise("Stage 1", "every call is a row of vlm_traces: provider llava, operation analyze, request, response, latency in ms")
async def test_call_of_stage_one_is_traced(pipeline: Pipeline) -> None:
    ids = await pipeline.source.insert_variant()
    body = (await pipeline.validate(ids, ad_copy_text="bread", prompt="?")).json()
    (trace,) = await pipeline.source.vlm_traces(ids)
    assert (trace["provider"], trace["operation_type"], str(trace["job_id"])) == ("llava", "analyze", ids["job_id"])
    assert {"asset_url", "ad_copy_text", "prompt"} <= trace["request"].keys()
    assert (trace["response"]["analysis"], trace["latency_ms"] > 0) == (body["analysis"], True)


@promise("Stage 1", "400 for an invalid id, another job or tenant and a missing file; 404 for an unknown variant or asset")
@pytest.mark.parametrize(
    ("change", "columns", "status", "detail"),
    [
        ({"job_variants_id": "x"}, {}, 400, "Invalid UUID format: "),
        ({"job_variants_id": MISSING}, {}, 404, "Job variant not found: "),
        ({"job_id": MISSING}, {}, 400, "Job variant job_id mismatch"),
        ({"tenant_id": "other"}, {}, 400, "Job tenant_id mismatch"),
        ({}, {"img_asset_id": "none"}, 404, "Image asset ID not found in job variant"),
        ({}, {"img_asset_id": MISSING}, 404, "Image asset not found: "),
    ],
)
async def test_refused_validation_changes_nothing(
    pipeline: Pipeline, change: dict[str, str], columns: dict[str, Any], status: int, detail: str
) -> None:
    ids = await pipeline.source.insert_variant(**columns)
    response = await pipeline.validate(ids | change)
    assert (response.status_code, response.json()["detail"][: len(detail)]) == (status, detail)
    assert await pipeline.source.variant_state(ids) == ("img_gen", "done")


@promise("Stage 1", "requests at the same time are answered at the same time, with the one model")
@promise("Stage 1", "500 when the model fails, and the variant is failed")
async def test_requests_at_the_same_time_and_a_model_that_fails(pipeline: Pipeline) -> None:
    variants = [await pipeline.source.insert_variant() for _ in range(6)]
    assert {response.status_code for response in await asyncio.gather(*map(pipeline.validate, variants))} == {200}
    pipeline.model.respond = lambda _: 413
    failing = await pipeline.source.insert_variant()
    response = await pipeline.validate(failing)
    assert (response.status_code, response.json()["detail"].startswith("LLaVa validation failed: ")) == (500, True)
    await wait_until(lambda: reached(pipeline, failing, ("vlm_analyze", "failed")), 20)


# -- Stage 2


@promise("Stage 2", "POST stage2/judge returns brief, occlusion, contrast, call to action, analysis and issues")
@promise("Stage 2", "the variant is at (vlm_judge, done) afterwards, which starts the next step; the trace says judge")
async def test_judged_variant_has_a_verdict_and_a_trace(pipeline: Pipeline) -> None:
    ids = await pipeline.overlaid()
    response = await pipeline.judge(ids)
    (trace,) = await pipeline.source.vlm_traces(ids)
    assert (response.status_code, {name: response.json()[name] for name in AD_VERDICT}) == (200, AD_VERDICT)
    assert (trace["operation_type"], str(trace["vlm_trace_id"])) == ("judge", response.json()["vlm_trace_id"])
    assert trace["request"].keys() == {"render_asset_url", "overlay_id"}
    assert await pipeline.source.variant_state(ids) == ("vlm_judge", "done")


@promise("Stage 2", "400 unless the variant is at (overlay, done)")
@pytest.mark.parametrize(("step", "status"), [("planner", "done"), ("overlay", "running")])
async def test_variant_without_its_overlay_is_not_judged(pipeline: Pipeline, step: str, status: str) -> None:
    response = await pipeline.judge(await pipeline.overlaid(step=step, status=status))
    assert (response.status_code, pipeline.model.requests) == (400, [])


@promise("Stage 2", "the picture is render_asset_url, else the overlaid asset, else render.url of the overlay")
async def test_judged_picture_comes_from_the_first_place_that_has_one(pipeline: Pipeline) -> None:
    named, in_layout = (pipeline.source.write_asset(draw_text_picture()) for _ in range(2))
    both = await pipeline.overlaid()
    plain = await pipeline.overlaid(overlaid=None)
    overlay = await pipeline.source.insert_overlay(plain, {"render": {"url": in_layout}})
    for ids, body, url in ((both, {"render_asset_url": named}, named), (plain, {"overlay_id": overlay}, in_layout)):
        assert (await pipeline.judge(ids, **body)).status_code == 200
        assert (await pipeline.source.vlm_traces(ids))[0]["request"]["render_asset_url"] == url


# -- Validation logic


@promise("Prompts", "the text of the advertisement is in the prompt, which asks for a JSON object")
@promise("Prompts", "without a text the prompt asks for quality and fitness for advertising")
@promise(
    "Prompts",
    "at most 512 new tokens, greedy",
    differs="a model server gets a limit that the longest verdict fits, so that JSON is complete",
)
async def test_prompts_ask_for_json_about_picture_and_text(pipeline: Pipeline) -> None:
    await pipeline.validate(await pipeline.source.insert_variant(), ad_copy_text="fresh bread")
    await pipeline.validate(await pipeline.source.insert_variant())
    with_text, without = pipeline.prompts()
    assert ("fresh bread" in with_text, "JSON" in with_text, "JSON" in without, "advertis" in without) == (True, True, True, True)
    assert [request["temperature"] for request in pipeline.model.requests] == [0, 0]
    assert VisionSettings().verdict_max_new_tokens == 512


@promise("Prompts", "the frame is USER: <image>, the prompt, ASSISTANT:")
async def test_frame_of_the_prompt() -> None:
    assert VlmSettings().frame.format(image="<image>\n", text="?") == "USER: <image>\n?\nASSISTANT:"


@promise("Prompts", "the font has style, size and color")
async def test_font_of_the_document_is_accepted(pipeline: Pipeline) -> None:
    """As five fields in the response; a name and a reason are not invented."""
    pipeline.model.respond = lambda _: f"```json\n{json.dumps(DOCUMENTED)}\n```"
    body = (await pipeline.validate(await pipeline.source.insert_variant())).json()
    font = {"font_style": "bold", "font_size_category": "large", "font_color_hex": "ffffff", "font_name": "", "reasoning": ""}
    assert (body["font_recommendation"], body["repaired"]) == (font, True)


# -- Integration into the pipeline


@promise("Pipeline", "img_gen done starts stage 1, overlay done starts stage 2, by the database's notification")
async def test_notifications_start_both_stages(pipeline: Pipeline, rabbitmq: RabbitNode, tmp_path: Any) -> None:
    bus = BusSettings.model_validate({"amqp_url": rabbitmq.url, "database_url": pipeline.database_url})
    listener = build_pg_listener(ListenerSettings(reconnect_delay=0.1, sweep_seconds=60))
    async with Worker([], [listener], bus, StoreSettings(store_url=tmp_path.as_uri())).run():
        pairs = [(await pipeline.source.insert_variant(), ("vlm_analyze", "done")), (await pipeline.overlaid(), ("vlm_judge", "done"))]
        for ids, state in pairs:
            await wait_until(lambda ids=ids, state=state: reached(pipeline, ids, state), 20)
    assert [len(await pipeline.source.vlm_traces(ids)) for ids, _ in pairs] == [1, 1]


async def reached(pipeline: Pipeline, ids: dict[str, str], state: tuple[str, str]) -> bool:
    return await pipeline.source.variant_state(ids) == state


@promise(
    "Pipeline", "the steps yolo_detect and ocr_eval follow", differs="the old service keeps them; it listens to the same notifications"
)
async def test_only_the_two_stages_are_served() -> None:
    assert {"yolo_detect", "planner", "ocr_eval"}.isdisjoint(MODULES)


# -- Troubleshooting


@promise("Troubleshooting", "the same picture gets the same verdict")
async def test_same_variant_is_asked_with_the_same_request(pipeline: Pipeline) -> None:
    ids = await pipeline.source.insert_variant()
    verdicts = [(await pipeline.validate(ids)).json() for _ in range(2)]
    assert pipeline.model.requests[0] == pipeline.model.requests[1]
    assert [verdict["analysis"] for verdict in verdicts] == [IMAGE_VERDICT["analysis"]] * 2


@promise("Troubleshooting", "JSON inside other text is found, also with nested objects; the longest that is a verdict counts")
@pytest.mark.parametrize("frame", ["Sure! {}", "```json\n{}\n```", 'An example is {{"is_valid": true}}. Mine: {} Done.'])
async def test_json_inside_text_is_found(frame: str) -> None:
    response = VlmResponse(frame.format(json.dumps(IMAGE_VERDICT)), "stop", "m")
    verdict, repaired = parse_verdict(response, ImageAnswer, ImageVerdictSchema)
    assert (verdict.relevance_score, repaired) == (0.8, True)


@promise("Troubleshooting", "an answer without JSON ends as the default verdict: not valid, score 0, the answer as analysis")
async def test_unreadable_answer_of_stage_one_ends_as_the_default_verdict(pipeline: Pipeline) -> None:
    """After three answers, and marked in the response and in the trace."""
    pipeline.model.respond = lambda _: POEM
    ids = await pipeline.source.insert_variant()
    response = await pipeline.validate(ids)
    body, (trace,) = response.json(), await pipeline.source.vlm_traces(ids)
    assert (response.status_code, body["is_valid"], body["relevance_score"], body["analysis"]) == (200, False, 0.0, POEM)
    assert (body["issues"], body["recommendations"], body["defaulted"]) == (["JSON 파싱 실패"], [], True)
    assert (trace["response"]["defaulted"], len(pipeline.model.requests)) == (True, 3)
    assert await pipeline.source.variant_state(ids) == ("vlm_analyze", "done")


@promise("Troubleshooting", "the same for stage 2: nothing is approved")
async def test_unreadable_answer_of_stage_two_ends_as_the_default_verdict(pipeline: Pipeline) -> None:
    pipeline.model.respond = lambda _: POEM
    body = (await pipeline.judge(await pipeline.overlaid())).json()
    assert [body[name] for name in ("on_brief", "occlusion", "contrast_ok", "cta_present", "defaulted")] == [False] * 4 + [True]
    assert (body["analysis"], body["issues"]) == (POEM, ["JSON 파싱 실패"])


@promise("Troubleshooting", "an answer that becomes readable when it is asked for again counts")
async def test_second_answer_counts(pipeline: Pipeline) -> None:
    answers = iter([POEM, json.dumps(AD_VERDICT)])
    pipeline.model.respond = lambda _: next(answers)
    body = (await pipeline.judge(await pipeline.overlaid())).json()
    assert (body["on_brief"], body["defaulted"], len(pipeline.model.requests)) == (True, False, 2)


@promise(
    "Troubleshooting", "outside these routes an unreadable answer is no verdict", differs="a retry, then a dead letter: nothing is invented"
)
async def test_command_without_the_default_gets_a_fault(pipeline: Pipeline) -> None:
    pipeline.model.respond = lambda _: POEM
    ids = await pipeline.source.insert_variant()
    with pytest.raises(ReplyFault, match="holds no verdict"):
        await pipeline.gateway.requests.request("validate", ids, seconds=30)
    await wait_until(lambda: reached(pipeline, ids, ("vlm_analyze", "failed")), 20)
