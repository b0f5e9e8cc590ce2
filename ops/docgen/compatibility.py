"""Whether the contracts are compatible with publishers and consumers that were built for the last release.

A message may get new optional fields, nothing else. Messages that Atelier receives must not become stricter; those that it sends must
keep their fields.
"""

import json
from collections.abc import Iterator
from typing import Any

from ops.docgen.settings_catalog import ROOT

RELEASED_PATH = ROOT / "docs" / "schemas.released.json"
"""The schemas of the last release. A release copies docs/schemas.json over it."""
LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems")
UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
Schema = dict[str, Any]


def released_schemas() -> Schema:
    schemas: Schema = json.loads(RELEASED_PATH.read_text())
    return schemas


def find_breaking_changes(released: Schema, current: Schema) -> list[str]:
    """Each breaking change, as `message.field: what is wrong`."""
    changes: list[str] = []
    for message, old in released["messages"].items():
        if message not in current["messages"]:
            changes.append(f"{message}: the message is gone")
        else:
            is_sent = message.endswith(".done.v1") or message in {"event.v1", "fault.v1"}
            changes += SchemaComparison(released, current, is_sent=is_sent).compare(message, old, current["messages"][message])
    return list(dict.fromkeys(changes))


class SchemaComparison:
    """Compares one message with its released form. `is_sent`: Atelier sends it, others receive it."""

    def __init__(self, released: Schema, current: Schema, *, is_sent: bool) -> None:
        self._released, self._current, self._is_sent = released, current, is_sent
        self._compared: set[tuple[str, str]] = set()

    def compare(self, path: str, old: Schema, new: Schema) -> Iterator[str]:
        pair = (str(old.get("$ref")), str(new.get("$ref")))
        if "$ref" in old and pair in self._compared:
            return
        self._compared.add(pair)
        old, new = resolve_schema(old, self._released), resolve_schema(new, self._current)
        if json_types(old, self._released) - json_types(new, self._current):
            yield f"{path}: was {sorted(json_types(old, self._released))}, is {sorted(json_types(new, self._current))}"
            return
        yield from self._compare_values(path, old, new)
        yield from self._compare_fields(path, old, new)
        if isinstance(old.get("items"), dict) and isinstance(new.get("items"), dict):
            yield from self.compare(f"{path}[]", old["items"], new["items"])

    def _compare_values(self, path: str, old: Schema, new: Schema) -> Iterator[str]:
        if gone := allowed_values(old) - allowed_values(new) if allowed_values(new) else set():
            yield f"{path}: no longer takes {sorted(gone)}"
        if self._is_sent:
            return
        if allowed_values(new) and not allowed_values(old):
            yield f"{path}: takes only {sorted(allowed_values(new))} now"
        for keyword in (*LOWER_BOUNDS, *UPPER_BOUNDS):
            narrower = max if keyword in LOWER_BOUNDS else min
            if keyword in new and (keyword not in old or narrower(old[keyword], new[keyword]) != old[keyword]):
                yield f"{path}: {keyword} is {new[keyword]} now, stricter than before"
        if "pattern" in new and new["pattern"] != old.get("pattern"):
            yield f"{path}: has another pattern"

    def _compare_fields(self, path: str, old: Schema, new: Schema) -> Iterator[str]:
        required, were_required = set(new.get("required", [])), set(old.get("required", []))
        for name in sorted(were_required - required if self._is_sent else required - were_required):
            yield f"{path}.{name}: {'may be missing now' if self._is_sent else 'is required now'}"
        for name, field in old.get("properties", {}).items():
            if name not in new.get("properties", {}):
                yield f"{path}.{name}: the field is gone"
            else:
                yield from self.compare(f"{path}.{name}", field, new["properties"][name])


def resolve_schema(schema: Schema, root: Schema) -> Schema:
    """Follow references, and reduce a union with null to its other part."""
    if isinstance(schema.get("$ref"), str):
        return resolve_schema(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    parts = [part for part in schema.get("allOf", []) + schema.get("anyOf", []) if part.get("type") != "null"]
    return resolve_schema(parts[0], root) if len(parts) == 1 else schema


def json_types(schema: Schema, root: Schema) -> set[str]:
    """The JSON types that a schema admits; a number admits an integer too. Empty: any."""
    if "anyOf" in schema:
        return {kind for part in schema["anyOf"] for kind in json_types(resolve_schema(part, root), root)}
    declared = schema.get("type")
    types = {declared} if isinstance(declared, str) else set(declared or ())
    return types | {"integer"} if "number" in types else types


def allowed_values(schema: Schema) -> set[str]:
    return {str(value) for value in schema.get("enum", [schema["const"]] if "const" in schema else [])}
