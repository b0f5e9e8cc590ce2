"""A message's body as a form: its contract's JSON schema gives the fields, the body their values; and back."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SCALAR_TYPES = ("string", "integer", "number", "boolean")
CONSTRAINT_ATTRIBUTES = {"minimum": "min", "maximum": "max", "multipleOf": "step", "maxLength": "maxlength"}
MULTILINE_LENGTH = 60


@dataclass(frozen=True)
class BodyField:
    """One field. `kind`: string, integer, number, boolean, choice, or json for what has parts."""

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
    """What was typed into a field is not of its kind."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in errors.items()))
        self.errors = errors


def fields_from_body(schema: Mapping[str, Any] | None, body: Mapping[str, Any]) -> list[BodyField]:
    """What the body has first, then what it might have; without a contract only what it has."""
    known: Mapping[str, Any] = (schema or {}).get("properties", {})
    required = (schema or {}).get("required", [])
    names = [*body, *(name for name in known if name not in body)]
    return [_body_field(name, _resolve_schema(known.get(name), schema or {}), body, name in required) for name in names]


def body_from_form(fields: list[BodyField], form: Mapping[str, str]) -> dict[str, Any]:
    """A blank field that the body did not have stays away. Raises Unreadable."""
    body: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for entry in fields:
        typed = form.get(f"body.{entry.name}", "")
        if not typed.strip() and not (entry.present and entry.kind == "string" and entry.value == ""):
            continue
        try:
            body[entry.name] = _parse_value(entry, typed)
        except ValueError as error:
            wrong[entry.name] = str(error)
    if wrong:
        raise InvalidForm(wrong)
    return body


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Field, what it was, what it will be."""
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name) or (name in old) != (name in new):
            yield name, _display_value(old[name]) if name in old else "", _display_value(new[name]) if name in new else ""


def _body_field(name: str, field_schema: Mapping[str, Any], body: Mapping[str, Any], required: bool) -> BodyField:
    value, present = body.get(name), name in body
    kind, choices = str(field_schema.get("type", "json")), tuple(str(choice) for choice in field_schema.get("enum", ()))
    fits = value is None or (kind in SCALAR_TYPES and _matches_type(kind, value))
    if choices and (value is None or str(value) in choices):
        kind = "choice"
    elif not fits or kind not in SCALAR_TYPES:
        kind = "string" if isinstance(value, str) and not field_schema else "json"
    text = (
        "" if value is None else (value if isinstance(value, str) and kind != "json" else json.dumps(value, ensure_ascii=False, indent=2))
    )
    limits = {CONSTRAINT_ATTRIBUTES[word]: field_schema[word] for word in CONSTRAINT_ATTRIBUTES if word in field_schema}
    usual = "" if field_schema.get("default") is None else _display_value(field_schema["default"])
    return BodyField(name, kind, text, present, required, choices, limits, str(field_schema.get("description", "")), usual)


def _matches_type(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return {"string": isinstance(value, str), "integer": isinstance(value, int), "number": isinstance(value, int | float)}.get(kind, False)


def _resolve_schema(field_schema: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a field itself: through references, and without the null that stands for `not given`."""
    if not isinstance(field_schema, Mapping):
        return {}
    if "$ref" in field_schema:
        there = schema.get("$defs", {}).get(str(field_schema["$ref"]).rpartition("/")[2], {})
        return {**there, **{name: value for name, value in field_schema.items() if name != "$ref"}}
    ways = [way for way in field_schema.get("anyOf", ()) if way.get("type") != "null"]
    if len(ways) == 1:
        return {**_resolve_schema(ways[0], schema), **{name: value for name, value in field_schema.items() if name != "anyOf"}}
    return field_schema


def _parse_value(body_field: BodyField, text: str) -> Any:
    match body_field.kind:
        case "integer":
            return int(text)
        case "number":
            return float(text) if any(letter in text for letter in ".eE") else int(text)
        case "boolean":
            return text.strip().lower() == "true"
        case "json":
            return json.loads(text)
        case _:
            return text


def _display_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
