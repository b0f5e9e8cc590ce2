"""The three public forms of an order are translated into one command; an invalid order is rejected."""

import json
from typing import Any

import pytest

from actors.adapters.image_generation import translate
from actors.settings import OrderSettings, WebhookSettings
from bus.actor import IgnoredMessage, InvalidMessage, TranslatedCommand

FORM_A: dict[str, Any] = {
    "task_id": "5e0b",
    "type": "image_generation",
    "data": {
        "generation_id": 500,
        "style_id": 10,
        "prompt": "a harbour at dusk",
        "negative_prompt": "blurry",
        "parameters": {"width": 512, "height": 768, "steps": 20, "cfg_scale": 6.0, "seed": 42},
    },
    "callback_url": "https://backend.example/api/webhooks/generation/complete",
    "created_at": "2025-10-01T00:00:00.000Z",
}
FORM_B: dict[str, Any] = {
    "generation_id": 500,
    "style_id": 10,
    "lora_model_url": "s3://models/style-10.safetensors",
    "prompt_tags": ["harbour", "dusk"],
    "artist_name": "김작가",
    "webhook_url": "https://backend.example",
}
FORM_C: dict[str, Any] = {
    "task_id": "5e0b",
    "type": "image_generation",
    "data": {
        "generation_id": 500,
        "style_id": 10,
        "lora_path": "gs://media/models/style-10/adapter_model.safetensors",
        "prompt": "harbour, dusk",
        "aspect_ratio": "1:2",
        "seed": None,
        "signature_path": "https://media.example/signature.png",
        "signature_config": {"position": "top-left", "size": "large", "opacity": 0.5},
        "prompt_tags": ["harbour", "dusk"],
    },
    "webhook_url": "https://backend.example/api/webhooks/generation/500/status",
}


def translate_order(message: Any, **orders: Any) -> TranslatedCommand:
    return translate(json.dumps(message).encode(), WebhookSettings(), OrderSettings(**orders))


def form_c_with(**data: Any) -> dict[str, Any]:
    return FORM_C | {"data": FORM_C["data"] | data}


def test_form_a_maps_size_steps_guidance_and_seed() -> None:
    body = translate_order(FORM_A).body
    assert {name: body[name] for name in ("prompt", "negative_prompt", "height", "steps", "guidance_scale", "seed")} == {
        "prompt": "a harbour at dusk",
        "negative_prompt": "blurry",
        "height": 768,
        "steps": 20,
        "guidance_scale": 6.0,
        "seed": 42,
    }
    assert body["slip"]["variables"]["base_url"] == "https://backend.example"


@pytest.mark.parametrize("message", [FORM_A | {"data": FORM_A["data"] | {"parameters": {"width": 512}}}, FORM_B, FORM_C])
def test_steps_and_guidance_that_are_not_named_are_left_to_the_model(message: dict[str, Any]) -> None:
    """A model without guidance refuses a scale, and a distilled one draws with four steps. The size is that of the form."""
    body = translate_order(message).body
    assert body.keys().isdisjoint({"steps", "guidance_scale"})
    assert body["width"] == 512
    assert translate_order(form_c_with(num_inference_steps=4)).body["steps"] == 4


def test_form_b_is_flat_and_signs_with_artist_name() -> None:
    body = translate_order(FORM_B).body
    assert (body["prompt"], body["seed"], body["lora"]["uri"]) == ("harbour, dusk", 42, "s3://models/style-10.safetensors")
    assert body["slip"]["variables"]["signature"]["text"] == "김작가"


def test_form_c_maps_ratio_signature_and_gs_path() -> None:
    body = translate_order(FORM_C).body
    assert (body.get("width", 512), body["height"]) == (512, 1024)
    assert body["lora"]["uri"] == "gs://media/models/style-10/adapter_model.safetensors"
    assert translate_order(form_c_with(lora_alpha=32)).body["lora"]["alpha"] == 32
    assert body["slip"]["variables"]["signature"] == {
        "image_uri": "https://media.example/signature.png",
        "position": "top-left",
        "size": "large",
        "opacity": 0.5,
        "required": False,
    }
    assert body["signature"] == body["slip"]["variables"]["signature"], "the image step looks for it before it draws"
    assert "base_url" not in body["slip"]["variables"], "form C's webhook_url is read by no consumer"


@pytest.mark.parametrize("address", ["http://[", "https://[::1/hook", "https://\u2100.example/hook", "backend.example", ""])
def test_address_without_readable_host_leaves_the_configured_backend(address: str) -> None:
    """Not even the `failed` webhook was called, since the address was read as none."""
    for order in (FORM_A | {"callback_url": address}, FORM_B | {"webhook_url": address}):
        assert "base_url" not in translate_order(order).body["slip"]["variables"]


@pytest.mark.parametrize(
    ("given", "fraction"), [(0, 0.0), (0.5, 0.5), (1, 1.0), (1.0, 1.0), (2, 2 / 255), (128, 128 / 255), (128.0, 128 / 255), (255, 1.0)]
)
def test_opacity_is_a_fraction_or_a_whole_number_of_255(given: float, fraction: float) -> None:
    command = translate_order(form_c_with(signature_config={"opacity": given}))
    assert command.body["slip"]["variables"]["signature"]["opacity"] == pytest.approx(fraction)


def test_missing_assets_are_an_error_where_the_setting_or_default_says_so() -> None:
    lenient, strict = translate_order(FORM_C).body, translate_order(FORM_C, assets_required=True).body
    assert [body["lora"].get("required", True) for body in (lenient, strict)] == [False, True]
    assert [body["signature"].get("required", True) for body in (lenient, strict)] == [False, True]
    allowed = translate_order(form_c_with(allow_base_model=True), assets_required=True).body
    assert allowed["lora"]["required"] is False


@pytest.mark.parametrize("kind", ["model_training", "x" * 100_000, 5, None, {"a": [1]}])
def test_message_of_another_type_is_ignored(kind: Any) -> None:
    """Also one with a generation id: a `failed` webhook would refund it."""
    with pytest.raises(IgnoredMessage) as raised:
        translate_order({"type": kind, "data": {"generation_id": 500, "style_id": 1}})
    assert len(str(raised.value)) < 200


def test_itinerary_is_watermark_upload_webhook() -> None:
    slip = translate_order(FORM_C).body["slip"]
    assert [step["step"] for step in slip["itinerary"]] == ["watermark", "upload", "webhook"]
    assert (slip["on_progress"]["arguments"], slip["on_failure"]["arguments"]) == ({"kind": "progress"}, {"kind": "failed"})


def test_same_generation_has_same_ids_in_every_form() -> None:
    assert len({(command.message_id, command.job_id) for command in map(translate_order, (FORM_A, FORM_B, FORM_C))}) == 1


def test_size_string_is_parsed() -> None:
    parameters = {"size": "640x384", "steps": 30}
    body = translate_order(FORM_A | {"data": FORM_A["data"] | {"parameters": parameters}}).body
    assert (body["width"], body["height"], body["steps"]) == (640, 384, 30)


@pytest.mark.parametrize(
    ("message", "code", "notified"),
    [
        (b"{nope", "invalid-json", False),
        (b"\xff", "invalid-json", False),
        (b"[" * 100_000, "invalid-json", False),
        ([], "invalid-message", False),
        ({"type": "image_generation", "data": {"prompt": "x"}}, "invalid-message", False),
        (form_c_with(prompt=5), "invalid-message", True),
        (form_c_with(aspect_ratio="3:1"), "unknown-size", True),
        (FORM_A | {"data": FORM_A["data"] | {"parameters": {"width": 515}}}, "unknown-size", True),
        (FORM_A | {"data": FORM_A["data"] | {"parameters": {"size": "huge"}}}, "unknown-size", True),
        (FORM_A | {"data": FORM_A["data"] | {"parameters": {"width": 100_000}}}, "unknown-size", True),
        (form_c_with(count=0), "invalid-count", True),
        (form_c_with(lora_alpha=0), "invalid-message", True),
        (form_c_with(count=5), "invalid-count", True),
        (form_c_with(generation_id="500", count=5), "invalid-count", True),
        (form_c_with(generation_id="the first"), "invalid-message", False),
        (form_c_with(signature_config={"position": "middle"}), "invalid-message", True),
        (form_c_with(signature_config={"opacity": 256}), "invalid-message", True),
        (form_c_with(signature_config={"opacity": 1.5}), "invalid-message", True),
        (form_c_with(prompt="", prompt_tags=[]), "invalid-message", True),
        (form_c_with(prompt="x" * 5000), "invalid-message", True),
        (FORM_B | {"webhook_url": "http://169.254.169.254/latest"}, "webhook-address-refused", True),
        (FORM_A | {"callback_url": "https://10.0.0.7/hook"}, "webhook-address-refused", True),
    ],
)
def test_invalid_order_is_rejected_and_backend_notified_when_possible(message: Any, code: str, notified: bool) -> None:
    with pytest.raises(InvalidMessage) as raised:
        translate(message if isinstance(message, bytes) else json.dumps(message).encode(), WebhookSettings(), OrderSettings())
    assert (raised.value.code, raised.value.notification is not None) == (code, notified)
    if raised.value.notification:
        assert raised.value.notification.body == {"kind": "failed", "generation_id": 500}
