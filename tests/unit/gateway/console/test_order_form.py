"""The form of the page Make: to an order, from an order, and its errors."""

from typing import Any

import pytest
from pydantic import ValidationError

from contracts.claim import Claim
from gateway.console.form_body import SubmittedForm
from gateway.console.order_form import DEFAULTS, KEPT_FIELDS, NOT_STORED, field_errors, form_from_order, order_from_form, picture_links
from gateway.console.source_pictures import InvalidPictures, check_pictures
from gateway.jobs.orders import Ad, ImageOrder


def errors_of(**fields: str) -> dict[str, str]:
    with pytest.raises(ValidationError) as raised:
        order_from_form(SubmittedForm(fields))
    return field_errors(raised.value, fields)


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


def picture(name: str) -> Claim:
    return Claim(uri=f"s3://store/claims/{name}", sha256="0" * 64, media_type="image/png", size=1)


def test_styles_are_names_or_addresses_each_with_its_scale() -> None:
    """Empty rows between them are left out; the address in the section More comes first."""
    fields = {"lora_0": "ink", "lora_2": "s3://styles/oil.safetensors", "lora_2_scale": "0.5", "lora_uri": "https://styles/a"}
    order: Any = order_from_form(SubmittedForm({"prompt": "a boat"} | fields))
    assert [(lora.name, lora.uri, lora.scale) for lora in (order.lora, *order.loras)] == [
        (None, "https://styles/a", 1.0),
        ("ink", None, 1.0),
        (None, "s3://styles/oil.safetensors", 0.5),
    ]
    form = form_from_order(order.model_dump(mode="json", exclude_unset=True))
    assert order_from_form(SubmittedForm(form)) == order


LORAS: list[dict[str, Any]] = [
    {"uri": "https://styles/a", "sha256": "a" * 64, "scale": 0.5},
    {"name": "ink", "alpha": 8.0, "required": False},
    {"uri": "s3://styles/oil.safetensors", "alpha": 4.0, "scale": 1.5},
]


@pytest.mark.parametrize("order", [{"lora": LORAS[0], "loras": LORAS[1:]}, {"loras": [LORAS[1], LORAS[0], LORAS[2]]}])
def test_values_of_a_style_without_an_input_are_kept(order: dict[str, Any]) -> None:
    """Its sha256, its alpha, and whether it is required: another style in its row does not get them."""
    form = form_from_order({"kind": "image_order", "prompt": "a boat"} | order)
    assert {name for name in form if name.endswith(("_alpha", "_sha256", "_required", "_of"))} <= set(KEPT_FIELDS)
    again: Any = order_from_form(SubmittedForm(form))
    assert again.model_dump(exclude_unset=True).items() >= order.items()
    row = next(name for name in ("lora_0", "lora_1") if form[name] == "ink")
    changed: Any = order_from_form(SubmittedForm(form | {row: "chalk"}))
    (chalk,) = [lora for lora in changed.loras if lora.name == "chalk"]
    assert (chalk.sha256, chalk.alpha, chalk.required) == (None, None, True)


def test_error_of_a_kept_value_is_at_its_style() -> None:
    assert errors_of(prompt="a boat", lora_uri="s3://s/k", lora_of="s3://s/k", lora_alpha="0").keys() == {"lora_uri"}
    assert errors_of(prompt="a boat", lora_3="ink", lora_3_of="ink", lora_3_sha256="short").keys() == {"lora_3"}


def test_error_of_a_style_is_at_its_row() -> None:
    """Also where an earlier row is empty; a strength without a style is an error, not nothing."""
    fields = {"prompt": "a boat", "lora_1": "ink", "lora_4": "oil", "lora_4_scale": "9", "lora_6_scale": "1"}
    assert errors_of(**fields).keys() == {"lora_4", "lora_6"}
    assert errors_of(prompt="a boat", lora_scale="1").keys() == {"lora_uri"}


def test_edit_and_control_have_the_claims_of_their_pictures() -> None:
    claims = {"source": picture("a.png"), "mask": picture("b.png")}
    order: Any = order_from_form(SubmittedForm(prompt="a boat", strength="0.4"), claims)
    assert (order.edit.image.uri, order.edit.mask.uri, order.edit.strength) == (claims["source"].uri, claims["mask"].uri, 0.4)
    form = form_from_order(order.model_dump(mode="json", exclude_unset=True), "job-1")
    assert {name: form[name] for name in ("source_ref", "mask_ref", "strength")} == {
        "source_ref": "job-1/edit.image",
        "mask_ref": "job-1/edit.mask",
        "strength": "0.4",
    }
    assert picture_links(form, "/jobs") == {"source": "/jobs/job-1/files/edit.image", "mask": "/jobs/job-1/files/edit.mask"}
    fields = {"prompt": "a boat", "control_model": "canny", "control_scale": "0.7"}
    controlled: Any = order_from_form(SubmittedForm(fields), {"control": picture("c.png")})
    assert (controlled.control.model, controlled.control.scale, controlled.control.image.uri) == ("canny", 0.7, picture("c.png").uri)
    form = form_from_order(controlled.model_dump(mode="json", exclude_unset=True), "job-2")
    assert (form["control_ref"], form["control_model"], form["control_scale"]) == ("job-2/control.image", "canny", "0.7")


def test_errors_of_picture_values_are_at_their_fields() -> None:
    for claims, fields, name in (
        ({"source": NOT_STORED}, {"strength": "2"}, "strength"),
        ({"control": NOT_STORED}, {"control_model": "canny", "control_scale": "9"}, "control_scale"),
    ):
        with pytest.raises(ValidationError) as raised:
            order_from_form(SubmittedForm({"prompt": "a boat"} | fields), claims)
        assert field_errors(raised.value).keys() == {name}


@pytest.mark.parametrize(
    ("fields", "files", "wrong"),
    [
        ({}, (), set()),
        ({"source_ref": "j/a.png", "mask_ref": "j/b.png", "strength": "0.5"}, (), set()),
        ({"strength": "0.5"}, ("source",), set()),
        ({"strength": "0.5"}, (), {"strength"}),
        ({}, ("mask",), {"mask"}),
        ({"mask_ref": "j/b.png"}, (), {"mask"}),
        ({"control_model": "canny"}, ("control",), set()),
        ({}, ("control",), {"control_model"}),
        ({"control_model": "canny"}, (), {"control_model"}),
        ({"control_scale": "1"}, (), {"control_scale"}),
        ({"control_model": "canny"}, ("control", "source"), {"control"}),
    ],
)
def test_pictures_and_their_values_come_together(fields: dict[str, str], files: tuple[str, ...], wrong: set[str]) -> None:
    form = SubmittedForm(fields)
    form.files = dict.fromkeys(files, b"picture")
    try:
        present, errors = check_pictures(form), dict[str, str]()
        assert present == {name for name in ("source", "mask", "control") if name in files or f"{name}_ref" in fields}
    except InvalidPictures as error:
        errors = error.errors
    assert errors.keys() == wrong
