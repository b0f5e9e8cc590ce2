"""A message's body as a form: its contract's JSON schema gives the fields, the body their values; and back."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

PLAIN = ("string", "integer", "number", "boolean")
LIMITS = {"minimum": "min", "maximum": "max", "multipleOf": "step", "maxLength": "maxlength"}
LONG = 60


@dataclass(frozen=True)
class Entry:
    """One field. `kind`: string, integer, number, boolean, choice, or json for what has parts."""

    name: str
    kind: str
    value: str
    present: bool
    required: bool = False
    choices: tuple[str, ...] = ()
    limits: dict[str, Any] = field(default_factory=dict)
    says: str = ""
    usual: str = ""

    @property
    def long(self) -> bool:
        return self.kind == "json" or (self.kind == "string" and (len(self.value) > LONG or "\n" in self.value))


class Unreadable(Exception):
    """What was typed into a field is not of its kind."""

    def __init__(self, wrong: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in wrong.items()))
        self.wrong = wrong


def entries_of(schema: Mapping[str, Any] | None, body: Mapping[str, Any]) -> list[Entry]:
    """What the body has first, then what it might have; without a contract only what it has."""
    known: Mapping[str, Any] = (schema or {}).get("properties", {})
    required = (schema or {}).get("required", [])
    names = [*body, *(name for name in known if name not in body)]
    return [_entry(name, _resolved(known.get(name), schema or {}), body, name in required) for name in names]


def body_of(entries: list[Entry], form: Mapping[str, str]) -> dict[str, Any]:
    """A blank field that the body did not have stays away. Raises Unreadable."""
    body: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for entry in entries:
        typed = form.get(f"body.{entry.name}", "")
        if not typed.strip() and not (entry.present and entry.kind == "string" and entry.value == ""):
            continue
        try:
            body[entry.name] = _read(entry, typed)
        except ValueError as error:
            wrong[entry.name] = str(error)
    if wrong:
        raise Unreadable(wrong)
    return body


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Field, what it was, what it will be."""
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name) or (name in old) != (name in new):
            yield name, _said(old[name]) if name in old else "", _said(new[name]) if name in new else ""


def _entry(name: str, said: Mapping[str, Any], body: Mapping[str, Any], required: bool) -> Entry:
    value, present = body.get(name), name in body
    kind, choices = str(said.get("type", "json")), tuple(str(choice) for choice in said.get("enum", ()))
    fits = value is None or (kind in PLAIN and _is(kind, value))
    if choices and (value is None or str(value) in choices):
        kind = "choice"
    elif not fits or kind not in PLAIN:
        kind = "string" if isinstance(value, str) and not said else "json"
    text = (
        "" if value is None else (value if isinstance(value, str) and kind != "json" else json.dumps(value, ensure_ascii=False, indent=2))
    )
    limits = {LIMITS[word]: said[word] for word in LIMITS if word in said}
    usual = "" if said.get("default") is None else _said(said["default"])
    return Entry(name, kind, text, present, required, choices, limits, str(said.get("description", "")), usual)


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return {"string": isinstance(value, str), "integer": isinstance(value, int), "number": isinstance(value, int | float)}.get(kind, False)


def _resolved(said: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a field itself: through references, and without the null that stands for `not given`."""
    if not isinstance(said, Mapping):
        return {}
    if "$ref" in said:
        there = schema.get("$defs", {}).get(str(said["$ref"]).rpartition("/")[2], {})
        return {**there, **{name: value for name, value in said.items() if name != "$ref"}}
    ways = [way for way in said.get("anyOf", ()) if way.get("type") != "null"]
    if len(ways) == 1:
        return {**_resolved(ways[0], schema), **{name: value for name, value in said.items() if name != "anyOf"}}
    return said


def _read(entry: Entry, typed: str) -> Any:
    match entry.kind:
        case "integer":
            return int(typed)
        case "number":
            return float(typed) if any(letter in typed for letter in ".eE") else int(typed)
        case "boolean":
            return typed.strip().lower() == "true"
        case "json":
            return json.loads(typed)
        case _:
            return typed


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
