"""The ad itinerary end to end, over HTTP, with real broker, ledger, overlay, watermark, upload and webhook, and fake models."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from actors.judge import ACTOR as JUDGE
from actors.ledger import ACTORS
from actors.overlay import ACTOR as OVERLAY
from actors.text import ACTORS as TEXT
from actors.upload import ACTOR as UPLOAD
from actors.watermark import ACTOR as WATERMARK
from actors.webhook import ACTOR as WEBHOOK
from bus.actor import Actor, Context, Handler, Resources
from bus.settings import BusSettings
from contracts.judge import Judge, JudgeDone
from contracts.validate import Validate, ValidateDone
from contracts.wire import Step
from tests.support.broker_client import StartWorker, wait_until
from tests.support.fake_image_actor import FAKE_IMAGE_ACTOR
from tests.support.fake_openai_server import open_fake_openai_server
from tests.support.gateway_app import open_gateway, wait_until_job_ended
from tests.support.webhook_backend import WebhookBackend, open_webhook_backend

FONT = {"font_style": "bold", "font_name": "x", "font_size_category": "large", "font_color_hex": "fff8e0", "reasoning": "warm"}
GENERATION_IDS = count(7_100_000)


class FakeCritics:
    """Validate and judge actors that reject the first `refusals` pictures and record their commands."""

    def __init__(self, refusals: int) -> None:
        self.refusals, self.validated, self.judged = refusals, [], []  # type: ignore[var-annotated]

    async def validate(self, command: Validate, context: Context) -> ValidateDone:
        self.validated.append(command)
        verdict: dict[str, Any] = {
            "job_id": context.job_id,
            "image_quality_ok": True,
            "relevance_score": 0.9,
            "analysis": "warm",
            "issues": [],
        }
        accepted = len(self.validated) > self.refusals
        return ValidateDone.model_validate(verdict | {"is_valid": accepted, "recommendations": [], "font_recommendation": FONT})

    async def judge(self, command: Judge, context: Context) -> JudgeDone:
        self.judged.append(command)
        verdict = {"on_brief": True, "occlusion": False, "contrast_ok": True, "cta_present": False, "analysis": "good", "issues": []}
        return JudgeDone.model_validate(verdict | {"job_id": context.job_id})

    @property
    def actors(self) -> list[Actor]:
        limits: dict[str, Any] = {"timeout_seconds": 10, "prefetch": 4}
        return [
            Actor(step=Step.VALIDATE, command=Validate, result=ValidateDone, open=_open_with(self.validate), **limits),
            Actor(step=Step.JUDGE, command=Judge, result=JudgeDone, open=_open_with(self.judge), **limits),
        ]


def _open_with(handler: Any) -> Any:
    @asynccontextmanager
    async def open_handler(resources: Resources) -> AsyncIterator[Handler]:
        yield handler

    return open_handler


@pytest.fixture
async def backend(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WebhookBackend]:
    async with open_webhook_backend() as backend:
        monkeypatch.setenv("BACKEND_API_URL", backend.url)
        yield backend


@pytest.fixture
async def http(bus_settings: BusSettings, store_folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with open_gateway(bus_settings, store_folder) as client:
        yield client


def ad_order(**fields: Any) -> dict[str, Any]:
    order = {"kind": "ad", "prompt": "ramen", "text": "따뜻한 한 그릇", "seed": 7, "width": 256, "height": 256, "artist": "Kim"}
    return order | {"generation_id": next(GENERATION_IDS)} | fields


async def test_ad_job_runs_all_steps_to_webhook(http: httpx.AsyncClient, start_worker: StartWorker, backend: WebhookBackend) -> None:
    """The ad copy reaches validate and overlay; judge gets the measured region; the backend is notified once."""
    critics = FakeCritics(refusals=0)
    async with start_worker(*ACTORS, FAKE_IMAGE_ACTOR, OVERLAY, WATERMARK, UPLOAD, WEBHOOK, *critics.actors):
        response = await http.post("/jobs", json=ad_order(), params={"wait": 30})
        answer = response.json()
        assert response.status_code == 200, answer
        job = await wait_until_job_ended(http, answer["job_id"])
    result = answer["result"]
    assert job["itinerary"] == ["image", "validate", "overlay", "judge", "watermark", "upload", "webhook"]
    assert [step["step"] for step in job["steps"] if step["step"] != "webhook"] == job["itinerary"][:-1]
    assert critics.validated[0].ad_copy_text == result["layout"]["text"] == "따뜻한 한 그릇"
    assert critics.validated[0].prompt is None, "the picture's prompt does not replace the question of validate"
    (judged,) = critics.judged
    assert judged.bare_image == critics.validated[0].images[0]
    assert judged.images[0] != judged.bare_image
    assert judged.text_region is not None
    assert result["contrast_ratio"] >= 3
    assert (result["is_valid"], result["on_brief"], result["cta_present"], result["delivered"]) == (True, True, False, True)
    assert backend.paths.count("complete") == 1


@pytest.mark.usefixtures("backend")
async def test_ad_without_copy_starts_with_text_step(
    http: httpx.AsyncClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generated text, in one line, is what validate reads and what overlay draws."""
    critics = FakeCritics(refusals=0)
    async with open_fake_openai_server() as model:
        model.respond = lambda _: "따뜻한\n한 그릇 "
        monkeypatch.setenv("VLLM_SERVER_URL", model.url)
        async with start_worker(*ACTORS, *TEXT, FAKE_IMAGE_ACTOR, OVERLAY, WATERMARK, UPLOAD, WEBHOOK, *critics.actors):
            order = {name: value for name, value in ad_order().items() if name != "text"}
            response = await http.post("/jobs", json=order, params={"wait": 30})
            job = await wait_until_job_ended(http, response.json()["job_id"])
    assert job["itinerary"][:2] == ["text", "image"]
    assert critics.validated[0].ad_copy_text == response.json()["result"]["text"] == job["result"]["layout"]["text"] == "따뜻한 한 그릇"
    assert model.requests[0]["messages"][-1] == {"role": "user", "content": "ramen"}


@pytest.mark.usefixtures("backend")
async def test_judge_reads_copy_in_rendered_ad(http: httpx.AsyncClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy reaches judge; what was read in the picture is evidence, and contradicts a model that sees a call to action."""
    critics = FakeCritics(refusals=0)
    results = []
    async with open_fake_openai_server() as model:
        for name, value in {"JUDGE_ENGINE": "openai", "JUDGE_BASE_URL": model.url, "JUDGE_MODEL": "second"}.items():
            monkeypatch.setenv(name, value)
        async with start_worker(*ACTORS, FAKE_IMAGE_ACTOR, OVERLAY, WATERMARK, UPLOAD, WEBHOOK, JUDGE, critics.actors[0]):
            for text in ("Fresh ramen tonight", "Buy fresh ramen", "따뜻한 한 그릇"):
                response = await http.post("/jobs", json=ad_order(text=text), params={"wait": 100})
                assert response.status_code == 200, response.text
                results.append(response.json()["result"])
    read, called, korean = [result["evidence"] for result in results]
    assert (read["character_error_rate"], read["text_read"].split(), read["calls_to_action"]) == (0, ["Fresh", "ramen", "tonight"], [])
    assert [line["cer"] for line in read["text_lines"]] == [0] * len(read["text_lines"])
    assert [issue for issue in results[0]["issues"] if "has none of the words" in issue]
    assert (called["character_error_rate"], called["calls_to_action"], results[1]["issues"]) == (0, ["buy"], [])
    assert (korean["unknown_characters"], "character_error_rate" in korean, results[2]["issues"]) == ("그따뜻릇한", False, [])
    assert korean["text_height_share"] > 0.05


async def test_rejected_image_is_regenerated_with_new_seed(
    http: httpx.AsyncClient, start_worker: StartWorker, backend: WebhookBackend
) -> None:
    critics = FakeCritics(refusals=2)
    async with start_worker(*ACTORS, FAKE_IMAGE_ACTOR, OVERLAY, WATERMARK, UPLOAD, WEBHOOK, *critics.actors):
        response = await http.post("/jobs", json=ad_order(tries=2), params={"wait": 30})
        job = await wait_until_job_ended(http, response.json()["job_id"])
    seeds = [step["result"]["metadata"]["seed"] for step in job["steps"] if step["step"] == "image"]
    assert (len(seeds), len(set(seeds)), seeds[0]) == (3, 3, 7)
    assert response.json()["result"]["metadata"]["seed"] == seeds[2]
    assert backend.paths.count("complete") == 1


async def test_ad_ends_rejected_after_last_attempt(http: httpx.AsyncClient, start_worker: StartWorker, backend: WebhookBackend) -> None:
    """A rejection is a result, not a failure; the backend is notified once that there will be no picture."""
    critics = FakeCritics(refusals=9)
    async with start_worker(*ACTORS, FAKE_IMAGE_ACTOR, OVERLAY, WATERMARK, UPLOAD, WEBHOOK, *critics.actors):
        response = await http.post("/jobs", json=ad_order(tries=1), params={"wait": 30})
        job = await wait_until_job_ended(http, response.json()["job_id"])

        async def failed_received() -> bool:
            return "failed" in backend.paths

        await wait_until(failed_received)
    assert (response.status_code, response.json()["result"]["is_valid"], job["state"]) == (200, False, "completed")
    assert len(critics.validated) == 2
    assert critics.judged == []
    (failed,) = [request.body for request in backend.requests if request.path.endswith("failed")]
    assert failed["error_code"] == "REFUSED"


async def test_layout_is_stored_in_source_table(http: httpx.AsyncClient, start_worker: StartWorker, database_url: str) -> None:
    """With a variant's id: one row, with the region as shares, which judge reads."""
    variant = "6f0e2b1e-3f6a-4f0e-9a43-0b1a7f6a2a11"
    steps = [
        {"step": "image", "arguments": {"prompt": "ramen", "width": 128, "height": 128}},
        {"step": "overlay", "arguments": {"text": "SALE", "job_variants_id": variant}},
    ]
    async with start_worker(*ACTORS, FAKE_IMAGE_ACTOR, OVERLAY):
        response = await http.post("/jobs", json={"kind": "itinerary", "stops": steps}, params={"wait": 30})
        result = response.json()["result"]
        connection = await asyncpg.connect(database_url)
        row = await connection.fetchrow("select * from public.overlay_layouts where job_variants_id = $1::uuid", variant)
        await connection.close()
    assert row is not None
    assert str(row["overlay_id"]) == result["overlay_id"]
    assert float(row["x_ratio"]) == pytest.approx(result["text_region"]["x"], abs=1e-4)
    assert (row["text_margin"], '"SALE"' in row["layout"]) == ("8px", True)
