"""The form of the page Make: to an order, from an order, and its errors."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.console.form_body import SubmittedForm
from gateway.console.order_form import DEFAULTS, field_errors, form_from_order, order_from_form
from gateway.jobs.orders import Ad, ImageOrder


def errors_of(**fields: str) -> dict[str, str]:
    with pytest.raises(ValidationError) as raised:
        order_from_form(SubmittedForm(fields))
    return field_errors(raised.value)


def test_default_form_leaves_all_values_to_the_model() -> None:
    order = order_from_form(SubmittedForm(DEFAULTS | {"prompt": "a boat", "tries": "2", "seed": " "}))
    assert isinstance(order, ImageOrder)
    assert order.model_dump(exclude_unset=True) == {
        "kind": "image_order",
        "prompt": "a boat",
        "count": 1,
    }


def test_ad_form_has_text_and_no_count() -> None:
    order = order_from_form(SubmittedForm(DEFAULTS | {"kind": "ad", "prompt": "ramen", "text": "Warm", "tries": "3"}))
    assert isinstance(order, Ad)
    assert (order.text, order.tries) == ("Warm", 3)


def test_lora_and_preview_are_optional() -> None:
    fields = {"prompt": "a boat", "lora_uri": "s3://styles/ink.safetensors", "lora_scale": "0.5", "preview": "on"}
    order: Any = order_from_form(SubmittedForm(fields)).model_dump(exclude_unset=True)
    assert (order["lora"], order["preview"]) == ({"uri": "s3://styles/ink.safetensors", "scale": 0.5}, True)
    assert "lora" not in order_from_form(SubmittedForm(prompt="a boat")).model_fields_set


@pytest.mark.parametrize("order", [None, {"kind": "itinerary", "stops": []}, {}])
def test_form_without_picture_order_has_defaults(order: dict[str, Any] | None) -> None:
    assert form_from_order(order) == DEFAULTS


def test_form_from_order_and_back_yields_same_order() -> None:
    fields = {"prompt": "a boat", "seed": "7", "artist": "Kim", "lora_uri": "s3://s/k", "lora_scale": "2.0", "preview": "on", "count": "2"}
    order = order_from_form(SubmittedForm(DEFAULTS | fields))
    form = form_from_order(order.model_dump(mode="json", exclude_unset=True))
    assert order_from_form(SubmittedForm(form)) == order


@pytest.mark.parametrize("kind", ["image_order", "ad"])
def test_artist_signs_the_picture(kind: str) -> None:
    """As the form says: the name is written on the picture, and not only into its metadata."""
    order = order_from_form(SubmittedForm({"kind": kind, "prompt": "a boat", "artist": "Kim"}))
    assert order.slip("job-1").variables["signature"]["text"] == "Kim"
    assert errors_of(prompt="a boat", artist="x" * 201).keys() == {"artist"}


def test_errors_are_assigned_to_form_fields() -> None:
    errors = errors_of(prompt="a boat", width="77", lora_uri="s3://s/k", lora_scale="strong")
    assert errors.keys() == {"width", "lora_scale"}
    assert "multiple of 8" in errors["width"]


@pytest.mark.parametrize("fields", [{"kind": "unknown"}, {"prompt": "nul \0"}])
def test_error_of_no_form_field_has_empty_name(fields: dict[str, str]) -> None:
    assert errors_of(**fields).keys() == {""}
