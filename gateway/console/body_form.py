"""Convert a message body to form fields and back. The JSON schema of its contract gives the types, the body the values."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.json_body import parse_json

SCALAR_TYPES = ("string", "integer", "number", "boolean")
CONSTRAINT_ATTRIBUTES = {"minimum": "min", "maximum": "max", "multipleOf": "step", "maxLength": "maxlength"}
"""HTML attribute by JSON schema keyword."""
MAX_LEVELS = 200
"""As `parse_json` reads."""
MULTILINE_LENGTH = 60


@dataclass(frozen=True)
class BodyField:
    """One form field. `kind`: string, integer, number, boolean, choice, or json for objects, arrays and unknown types."""

    name: str
    kind: str
    value: str
    present: bool
    required: bool = False
    choices: tuple[str, ...] = ()
    constraints: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    default: str = ""

    @property
    def multiline(self) -> bool:
        return self.kind == "json" or (self.kind == "string" and (len(self.value) > MULTILINE_LENGTH or "\n" in self.value))


class InvalidForm(Exception):
    """At least one submitted value does not parse as its field's kind. `errors`: messages by field name."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {message}" for name, message in errors.items()))
        self.errors = errors


def fields_from_body(schema: Mapping[str, Any] | None, body: Mapping[str, Any]) -> list[BodyField]:
    """The fields of the body, then those of the schema that the body lacks. Without a schema only the former."""
    schema = schema or {}
    properties: Mapping[str, Any] = schema.get("properties", {})
    required = schema.get("required", [])
    names = [*body, *(name for name in properties if name not in body)]
    return [_body_field(name, _resolve_schema(properties.get(name), schema), body, name in required) for name in names]


def body_from_form(fields: list[BodyField], form: Mapping[str, str]) -> dict[str, Any]:
    """Parse the submitted values. A blank field is left out, unless the body had an empty string there. Raises InvalidForm."""
    body: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for body_field in fields:
        text = form.get(f"body.{body_field.name}", "")
        if not text.strip() and not (body_field.present and body_field.kind == "string" and body_field.value == ""):
            continue
        try:
            body[body_field.name] = _parse_value(body_field, text)
        except ValueError as error:
            errors[body_field.name] = str(error)
    if errors:
        raise InvalidForm(errors)
    return body


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, old value and new value of each field that differs."""
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name) or (name in old) != (name in new):
            yield name, _display_value(old[name]) if name in old else "", _display_value(new[name]) if name in new else ""


def _body_field(name: str, field_schema: Mapping[str, Any], body: Mapping[str, Any], required: bool) -> BodyField:
    value, choices = body.get(name), tuple(str(choice) for choice in field_schema.get("enum", ()))
    kind = _field_kind(field_schema, value, choices)
    default = field_schema.get("default")
    return BodyField(
        name=name,
        kind=kind,
        value=_field_text(kind, value),
        present=name in body,
        required=required,
        choices=choices,
        constraints={attribute: field_schema[word] for word, attribute in CONSTRAINT_ATTRIBUTES.items() if word in field_schema},
        description=str(field_schema.get("description", "")),
        default="" if default is None else _display_value(default),
    )


def _field_kind(field_schema: Mapping[str, Any], value: Any, choices: tuple[str, ...]) -> str:
    """The schema's type, unless the present value does not match it: then json, so that the value stays editable."""
    if choices and (value is None or str(value) in choices):
        return "choice"
    kind = str(field_schema.get("type", "json"))
    if kind in SCALAR_TYPES and (value is None or _matches_type(kind, value)):
        return kind
    return "string" if isinstance(value, str) and not field_schema else "json"


def _field_text(kind: str, value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) and kind != "json" else json_text(value, indent=2)


def _matches_type(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return {"string": isinstance(value, str), "integer": isinstance(value, int), "number": isinstance(value, int | float)}.get(kind, False)


def _resolve_schema(field_schema: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a field with references followed and a `null` alternative removed."""
    if not isinstance(field_schema, Mapping):
        return {}
    if "$ref" in field_schema:
        definition = schema.get("$defs", {}).get(str(field_schema["$ref"]).rpartition("/")[2], {})
        return {**definition, **{name: value for name, value in field_schema.items() if name != "$ref"}}
    alternatives = [alternative for alternative in field_schema.get("anyOf", ()) if alternative.get("type") != "null"]
    if len(alternatives) == 1:
        return {**_resolve_schema(alternatives[0], schema), **{name: value for name, value in field_schema.items() if name != "anyOf"}}
    return field_schema


def _parse_value(body_field: BodyField, text: str) -> Any:
    """Raises ValueError."""
    match body_field.kind:
        case "integer":
            return int(text)
        case "number":
            return finite(float(text)) if any(character in text for character in ".eE") else int(text)
        case "boolean":
            return text.strip().lower() == "true"
        case "json":
            return parse_json(text)
        case _:
            return text


def finite(number: float) -> float:
    """Raises ValueError for infinity and NaN, which are no JSON."""
    if not math.isfinite(number):
        raise ValueError("a number must be finite")
    return number


def _display_value(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON; for a value with more levels than a body may have, a note that does not parse, so that it is not submitted by mistake."""
    if has_more_levels(value, MAX_LEVELS):
        return "(too deeply nested to be shown)"
    return json.dumps(value, ensure_ascii=False, indent=indent)


def has_more_levels(value: Any, limit: int) -> bool:
    """Whether a JSON value is nested more deeply than `limit` levels."""
    if not isinstance(value, dict | list):
        return False
    return limit == 0 or any(has_more_levels(each, limit - 1) for each in (value.values() if isinstance(value, dict) else value))
