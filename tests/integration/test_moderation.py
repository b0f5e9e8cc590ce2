"""Moderation on a real broker: itineraries that the step's condition ends, and OpenAI's route with the official client."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import ModerationMultiModalInputParam

from actors.ledger import ACTORS
from actors.moderate import ACTOR as MODERATE
from actors.upload import ACTOR as UPLOAD
from actors.webhook import ACTOR as WEBHOOK
from bus.actor import Actor, Context, Handler, Resources
from bus.settings import BusSettings
from bus.storage.claim_store import ClaimStore
from contracts.image import Image, ImageDone
from contracts.itineraries import REFUSED_FAULT
from contracts.wire import Step
from tests.support.broker_client import BrokerClient, StartWorker, wait_until
from tests.support.fake_image_actor import store_images
from tests.support.gateway_app import open_gateway, wait_until_job_ended
from tests.support.live_gateway import live_gateway, official_client
from tests.support.moderated_pictures import as_png, draw_harmless_picture, draw_suspicious_picture
from tests.support.webhook_backend import open_webhook_backend

pytestmark = pytest.mark.timeout(180)

PAGE = Path(__file__).parents[2] / "docs/moderation.md"
BAD_SEED = 7
GATE = {"step": "moderate", "gate": "allowed"}


async def draw(command: Image, context: Context, *, claims: ClaimStore) -> ImageDone:
    """A suspicious picture for BAD_SEED, a harmless one for any other."""
    picture = draw_suspicious_picture() if command.seed == BAD_SEED else draw_harmless_picture()
    return await store_images(command, [as_png(picture)], claims, context.tenant)


@asynccontextmanager
async def open_painter(resources: Resources) -> AsyncIterator[Handler]:
    yield partial(draw, claims=resources.claims)


PAINTER = Actor(step=Step.IMAGE, command=Image, result=ImageDone, open=open_painter, timeout_seconds=30, prefetch=4)


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word list and NudeNet."""
    words = tmp_path / "words.txt"
    words.write_text("[violence]\nkill yourself\n[house-rules]\n도박\n")
    monkeypatch.setenv("MODERATION_WORDS", str(words))
    monkeypatch.setenv("MODERATION_NUDENET", "on")


@pytest.fixture
async def http(bus_settings: BusSettings, store_folder: Path, purged_queues: None) -> AsyncIterator[httpx.AsyncClient]:
    async with open_gateway(bus_settings, store_folder) as client:
        yield client


def guarded_order(prompt: str, seed: int) -> dict[str, Any]:
    """The itinerary of docs/moderation.md: the prompt is checked before the picture is drawn, the picture before it is uploaded."""
    order: dict[str, Any] = json.loads(PAGE.read_text().partition("```json\n")[2].partition("```")[0])
    return order | {"variables": order["variables"] | {"prompt": prompt, "seed": seed}}


@pytest.mark.parametrize(
    ("prompt", "seed", "steps", "label"),
    [
        ("a house", 1, ["moderate", "image", "moderate", "upload"], None),
        ("도박을 하는 집", 1, ["moderate"], "house-rules"),
        ("a house", BAD_SEED, ["moderate", "image", "moderate"], "buttocks-exposed"),
    ],
)
async def test_condition_ends_the_job_before_the_next_step(
    http: httpx.AsyncClient, start_worker: StartWorker, prompt: str, seed: int, steps: list[str], label: str | None
) -> None:
    async with start_worker(*ACTORS, PAINTER, MODERATE, UPLOAD):
        response = await http.post("/jobs", json=guarded_order(prompt, seed), params={"wait": 60})
        answer = response.json()
        assert response.status_code == 200, answer
        job = await wait_until_job_ended(http, answer["job_id"])
    assert [step["step"] for step in job["steps"]] == steps
    result = answer["result"]
    assert result["allowed"] == (label is None)
    assert [finding["label"] for finding in result["moderation"] if finding["flagged"]] == ([label] if label else [])
    assert ("result_urls" in result) == (label is None)


async def test_refused_picture_is_drawn_again_and_the_last_refusal_names_the_step(
    broker_client: BrokerClient, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a publisher of the bus may order: the condition loops back with another seed; without one it ends with the refusal's webhook."""
    refusal = {"step": "webhook", "arguments": {"kind": "failed", "fault": REFUSED_FAULT}}

    def command(job: int, fresh: list[str]) -> dict[str, Any]:
        loop = {"stops": [{"step": "image"}, GATE | {"again": None}], "times": 1, "fresh": fresh}
        slip = {
            "itinerary": [GATE | {"again": loop}, {"step": "upload"}],
            "variables": {"prompt": "a house", "seed": BAD_SEED, "name": f"again-{job}", "generation_id": job},
            "on_refusal": refusal,
        }
        return {"prompt": "a house", "seed": BAD_SEED, "slip": slip}

    async with open_webhook_backend() as backend:
        monkeypatch.setenv("BACKEND_API_URL", backend.url)
        async with start_worker(PAINTER, MODERATE, UPLOAD, WEBHOOK):
            replies = {}
            for job, fresh in ((8_700_001, ["seed"]), (8_700_002, [])):
                events = await broker_client.subscribe_events(f"image.completed.again-{job}")
                await broker_client.publish(
                    "image", command(job, fresh), reply_to=broker_client.reply_queue, correlation_id=f"again-{job}", type="image.v1"
                )
                replies[job] = (await broker_client.next_reply(60))[1], events

            async def failed_received() -> bool:
                return "failed" in backend.paths

            await wait_until(failed_received, 20)
        (failed,) = [request.body for request in backend.requests if request.path.endswith("failed")]
    assert [events.qsize() for _, events in replies.values()] == [2, 2]
    assert "result_urls" in replies[8_700_001][0], "the second picture has another seed"
    assert replies[8_700_002][0]["allowed"] is False
    assert (failed["generation_id"], failed["error_code"]) == (8_700_002, "REFUSED")
    assert "the step moderate is not met" in json.dumps(failed)


def parts(url: str) -> list[ModerationMultiModalInputParam]:
    return [{"type": "text", "text": "a house"}, {"type": "image_url", "image_url": {"url": url}}]


async def test_official_client_gets_results_in_openais_form(
    bus_settings: BusSettings, store_folder: Path, start_worker: StartWorker, purged_queues: None
) -> None:
    files = [as_png(picture) for picture in (draw_suspicious_picture(), draw_harmless_picture())]
    urls = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]
    async with (
        live_gateway(bus_settings, store_folder, request_seconds=60) as url,
        official_client(url) as client,
        start_worker(MODERATE),
    ):
        texts = await client.moderations.create(model="omni-moderation-latest", input=["a house", "Kill yourself!"])
        one = await client.moderations.create(input="도박")
        pictures = [
            await client.moderations.create(
                model="omni-moderation-latest",
                input=parts(picture),
            )
            for picture in urls
        ]
        with pytest.raises(openai.BadRequestError, match=r"damaged|not a complete|cut short"):
            await client.moderations.create(input=parts(urls[0][:-400]))
    assert [result.flagged for result in texts.results] == [False, True]
    assert texts.results[1].categories.violence
    assert (texts.results[1].category_scores.violence, texts.results[0].category_scores.violence) == (1, 0)
    assert (one.results[0].flagged, one.results[0].categories.illicit) == (True, False), "OpenAI has no such category"
    assert [answer.results[0].flagged for answer in pictures] == [True, False]
    assert pictures[0].results[0].categories.sexual
    assert pictures[0].results[0].category_scores.sexual > 0.6
    assert pictures[0].results[0].category_applied_input_types.sexual == ["image"]
    assert pictures[0].results[0].categories.sexual_minors is False
    assert pictures[0].id.startswith("modr-")
