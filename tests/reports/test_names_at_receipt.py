"""Names that cannot be drawn are refused where an order arrives: the foreign queue, the gateway, its console, the image step.

The reports are public ones, in our words; the head of each test names its report.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest

from actors.adapters.image_generation import translate
from actors.image import image
from actors.imaging.fonts import check_drawable, find_fonts, load_fonts
from actors.settings import OrderSettings, WebhookSettings
from bus.actor import InvalidMessage
from bus.errors import PermanentError
from bus.settings import BusSettings
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.image import Image as ImageCommand
from gateway.app import create_app
from gateway.console.order_form import ORDER_ADAPTER
from gateway.jobs.drawn_texts import check_drawn_texts
from gateway.problems import HttpProblem
from gateway.settings import GatewaySettings
from tests.integration.test_console import csrf_token
from tests.support.actor_context import make_context
from tests.support.fake_broker import FakePublisher, make_services

UNDRAWABLE = "ሀይሌ"


def foreign_order(**data: Any) -> bytes:
    return json.dumps({"type": "image_generation", "data": {"generation_id": 1, "prompt": "x", **data}}).encode()


@pytest.mark.parametrize("name", ["Kim 🎨", "张伟", "🎨", "محمد", "", None])
def test_order_with_a_name_that_can_be_drawn_is_accepted(name: str | None) -> None:
    """C38: `Kim 🎨` and 张伟 failed after the picture was drawn."""
    assert translate(foreign_order(artist_name=name), WebhookSettings(), OrderSettings(), load_fonts()).step == "image"


def test_order_with_a_name_that_no_font_has_fails_before_anything_is_drawn() -> None:
    with pytest.raises(InvalidMessage, match=r"artist_name.*U\+1200.*WATERMARK_FONTS") as raised:
        translate(foreign_order(artist_name=UNDRAWABLE), WebhookSettings(), OrderSettings(), load_fonts())
    assert raised.value.code == "glyph-missing"
    assert raised.value.notification is not None
    assert (raised.value.notification.step, raised.value.notification.body["kind"]) == ("webhook", "failed")


def test_order_that_signs_with_a_picture_may_have_any_name() -> None:
    assert translate(
        foreign_order(artist_name=UNDRAWABLE, signature_path="https://a/b.png"), WebhookSettings(), OrderSettings(), load_fonts()
    )


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "signature": ({"kind": "image_order", "prompt": "x", "signature": {"text": UNDRAWABLE}}, "signature", "glyph-missing"),
    "signature of an ad": ({"kind": "ad", "prompt": "x", "signature": {"text": "𠮷野家"}}, "signature", "glyph-missing"),
    "text of an ad": ({"kind": "ad", "prompt": "x", "text": UNDRAWABLE}, "text", "glyph-missing"),
    "text of emoji alone": ({"kind": "ad", "prompt": "x", "text": "🔥🔥"}, "text", "text-empty"),
    "step of an itinerary": (
        {
            "kind": "itinerary",
            "stops": [
                {"step": "image", "arguments": {"prompt": "x"}},
                {"step": "watermark", "arguments": {"signature": {"text": UNDRAWABLE}}},
            ],
        },
        "stops.1.arguments.signature",
        "glyph-missing",
    ),
    "overlay of an itinerary": (
        {
            "kind": "itinerary",
            "stops": [{"step": "image", "arguments": {"prompt": "x"}}, {"step": "overlay", "arguments": {"text": UNDRAWABLE}}],
        },
        "stops.1.arguments.text",
        "glyph-missing",
    ),
}


@pytest.mark.parametrize(("body", "field", "code"), REFUSED.values(), ids=list(REFUSED))
def test_job_whose_text_cannot_be_drawn_is_refused_at_receipt(body: dict[str, Any], field: str, code: str) -> None:
    parsed = ORDER_ADAPTER.validate_python(body)
    with pytest.raises(HttpProblem) as raised:
        check_drawn_texts(parsed, GatewaySettings())
    assert (raised.value.status, raised.value.title, raised.value.extensions) == (422, code, {"param": field})
    own, other = ("OVERLAY_FONTS", "WATERMARK_FONTS") if field.endswith("text") else ("WATERMARK_FONTS", "OVERLAY_FONTS")
    assert code == "text-empty" or own in raised.value.detail
    check_drawn_texts(parsed, GatewaySettings.model_validate({own: "/fonts/more.ttf"}))
    with pytest.raises(HttpProblem):
        check_drawn_texts(parsed, GatewaySettings.model_validate({other: "/fonts/more.ttf"}))


@pytest.mark.parametrize(
    "body",
    [
        {"signature": {"text": UNDRAWABLE, "image_uri": "https://a/b.png"}},
        {"artist": UNDRAWABLE},  # written into the metadata, and not drawn
        {"signature": {"text": "Kim 🎨"}},
        {"signature": {"text": "🎨"}},
        {"signature": {}},
        {},
    ],
)
def test_job_whose_text_is_drawn_or_not_needed_is_accepted(body: dict[str, Any]) -> None:
    check_drawn_texts(ORDER_ADAPTER.validate_python({"kind": "image_order", "prompt": "x"} | body), GatewaySettings())


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that accepts nothing: there is no broker behind it."""
    app = create_app(BusSettings.model_validate({"amqp_url": "amqp://x"}), GatewaySettings())
    app.state.services = make_services(FakePublisher({}), None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def test_gateway_answers_with_the_letter_and_the_cure(http: httpx.AsyncClient) -> None:
    response = await http.post("/jobs", json={"kind": "image_order", "prompt": "x", "signature": {"text": UNDRAWABLE}})
    problem = response.json()
    assert (response.status_code, problem["title"], problem["param"]) == (422, "glyph-missing", "signature")
    assert "U+1200" in problem["detail"]
    assert "WATERMARK_FONTS" in problem["detail"]


async def test_console_shows_the_problem_at_the_name(http: httpx.AsyncClient) -> None:
    page = await http.get("/console/make")
    form = {"csrf": csrf_token(page), "kind": "image_order", "prompt": "a harbour", "artist": UNDRAWABLE}
    response = await http.post("/console/make", data=form)
    assert response.status_code == 422
    assert "U+1200" in response.text
    assert "a harbour" in response.text


async def test_image_step_refuses_such_a_name_before_the_device_is_asked(tmp_path: Path) -> None:
    """Also for a job of another way, such as one that was submitted while the gateway had WATERMARK_FONTS."""
    executor = AsyncMock()
    command = ImageCommand.model_validate({"prompt": "x", "signature": {"text": UNDRAWABLE}})
    async with open_claim_store(StoreSettings(store_url=tmp_path.as_uri())) as claims:
        with pytest.raises(PermanentError, match=r"U\+1200"):
            await image(
                command, make_context(), claims=claims, executor=executor, sources=AsyncMock(), signature_max_bytes=100, fonts=load_fonts()
            )
    executor.run.assert_not_called()


def test_name_is_not_refused_where_a_further_font_cannot_be_read() -> None:
    """It lies where the texts are drawn."""
    check_drawable(UNDRAWABLE, find_fonts((Path("/fonts/of/another/machine.ttf"),)))
    with pytest.raises(PermanentError):
        check_drawable(UNDRAWABLE, find_fonts(()))


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x00\x01\x00\x00\x00\x05" + bytes(40), b"\xff" * 400])
def test_file_that_is_no_font_is_named_at_the_start(tmp_path: Path, content: bytes) -> None:
    """Before, an order was dead-lettered without its `failed` webhook by the error of the file."""
    file = tmp_path / "further.ttf"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"further\.ttf is no usable font"):
        find_fonts((file,))
