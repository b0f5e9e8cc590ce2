"""The form of a message body: kinds of fields, parsing, and the list of changes."""

from typing import Any

import pytest

from gateway.console.body_form import BodyField, InvalidForm, body_from_form, diff, fields_from_body

SCHEMA: dict[str, Any] = {
    "properties": {
        "prompt": {"type": "string", "maxLength": 4000, "description": "What to draw."},
        "width": {"type": "integer", "minimum": 64, "multipleOf": 8, "default": 512},
        "scale": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "scheduler": {"$ref": "#/$defs/Scheduler", "default": "euler"},
        "preview": {"type": "boolean"},
        "lora": {"anyOf": [{"$ref": "#/$defs/Lora"}, {"type": "null"}]},
    },
    "required": ["prompt"],
    "$defs": {"Scheduler": {"type": "string", "enum": ["euler", "ddim"]}, "Lora": {"type": "object"}},
}


def fields_by_name(body: dict[str, Any], schema: dict[str, Any] | None = SCHEMA) -> dict[str, BodyField]:
    return {body_field.name: body_field for body_field in fields_from_body(schema, body)}


def form_of(fields: list[BodyField]) -> dict[str, str]:
    return {f"body.{body_field.name}": body_field.value for body_field in fields}


def test_field_kinds_follow_schema() -> None:
    kinds = {name: body_field.kind for name, body_field in fields_by_name({}).items()}
    assert kinds == {
        "prompt": "string",
        "width": "integer",
        "scale": "number",
        "scheduler": "choice",
        "preview": "boolean",
        "lora": "json",
    }


def test_field_has_constraints_default_and_description() -> None:
    fields = fields_by_name({})
    assert fields["width"].constraints == {"min": 64, "step": 8}
    assert (fields["width"].default, fields["scheduler"].default) == ("512", "euler")
    assert (fields["prompt"].description, fields["prompt"].required, fields["width"].required) == ("What to draw.", True, False)
    assert fields["scheduler"].choices == ("euler", "ddim")


def test_body_fields_precede_absent_fields() -> None:
    fields = fields_from_body(SCHEMA, {"width": 64, "extra": [1]})
    assert [body_field.name for body_field in fields[:3]] == ["width", "extra", "prompt"]
    assert [body_field.present for body_field in fields[:3]] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("width", "wide", "json"),
        ("width", True, "json"),
        ("scheduler", "unknown", "string"),
        ("preview", 1, "json"),
        ("width", None, "integer"),
    ],
)
def test_mismatching_value_remains_editable(name: str, value: Any, kind: str) -> None:
    assert fields_by_name({name: value})[name].kind == kind


def test_without_schema_only_body_fields_are_listed() -> None:
    fields = fields_by_name({"text": "x", "number": 1}, None)
    assert {name: body_field.kind for name, body_field in fields.items()} == {"text": "string", "number": "json"}


def test_unchanged_form_yields_same_body() -> None:
    body = {"prompt": "a boat", "width": 64, "scale": 0.5, "scheduler": "ddim", "preview": True, "lora": {"uri": "s3://b/k"}, "extra": "é"}
    fields = fields_from_body(SCHEMA, body)
    assert body_from_form(fields, form_of(fields)) == body


def test_blank_field_is_omitted_unless_body_had_empty_string() -> None:
    fields = fields_from_body(SCHEMA, {"prompt": "", "width": 64})
    assert body_from_form(fields, {"body.prompt": "", "body.width": " "}) == {"prompt": ""}


def test_integer_text_of_number_field_stays_integer() -> None:
    fields = fields_from_body(SCHEMA, {"scale": 1.5})
    assert repr(body_from_form(fields, {"body.scale": "2"})["scale"]) == "2"


def test_invalid_values_are_reported_by_field() -> None:
    fields = fields_from_body(SCHEMA, {"width": 64, "lora": {}})
    with pytest.raises(InvalidForm) as raised:
        body_from_form(fields, {"body.width": "wide", "body.lora": "{", "body.prompt": "ok"})
    assert raised.value.errors.keys() == {"width", "lora"}


def test_multiline_depends_on_kind_length_and_newlines() -> None:
    fields = fields_by_name({"prompt": "short", "lora": {}, "long": "x" * 61, "lines": "a\nb"})
    assert [fields[name].multiline for name in ("prompt", "lora", "long", "lines")] == [False, True, True, True]


def test_diff_lists_changed_added_and_removed_fields() -> None:
    changes = list(diff({"same": 1, "changed": "a", "removed": None}, {"same": 1, "changed": [2], "added": "b"}))
    assert changes == [("changed", "a", "[2]"), ("removed", "null", ""), ("added", "", "b")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lora", "[" * 100_000),
        ("lora", '{"a": NaN}'),
        ("lora", "[1e999]"),
        ("scale", "1e999"),
        ("scale", "-1e999"),
        ("width", "9" * 5000),
    ],
)
def test_value_that_is_no_standard_json_is_an_error_of_its_field(name: str, text: str) -> None:
    with pytest.raises(InvalidForm) as raised:
        body_from_form(list(fields_by_name({}).values()), {"body.prompt": "x", f"body.{name}": text})
    assert list(raised.value.errors) == [name]


def test_value_that_is_nested_too_deeply_is_shown_as_a_note() -> None:
    """And is not submitted by mistake: the note is no JSON."""
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    fields = fields_by_name({"lora": deep})
    assert "too deeply nested" in fields["lora"].value
    with pytest.raises(InvalidForm):
        body_from_form(list(fields.values()), form_of(list(fields.values())))
    assert [name for name, _, _ in diff({"lora": deep}, {})] == ["lora"]
