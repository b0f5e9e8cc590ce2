"""Whether today's contracts still understand, and are understood by, whoever was built for the last release.

A message may get new optional fields, and that is all. What is sent to us must not become stricter; what we send must not say less.
"""

import json
from collections.abc import Iterator
from typing import Any

from ops.documents.settings_book import ROOT

RELEASED = ROOT / "docs" / "schemas.released.json"
"""The schemas of the last release. A release copies docs/schemas.json over it."""
LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems")
MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
Schema = dict[str, Any]


def released() -> Schema:
    whole: Schema = json.loads(RELEASED.read_text())
    return whole


def breaks(before: Schema, now: Schema) -> list[str]:
    """Each breach of a promise, as `message.field: what is wrong`."""
    found: list[str] = []
    for message, old in before["messages"].items():
        if message not in now["messages"]:
            found.append(f"{message}: the message is gone")
        else:
            said = Said(before, now, sent=message.endswith(".done.v1") or message in {"event.v1", "fault.v1"})
            found += said.compare(message, old, now["messages"][message])
    return list(dict.fromkeys(found))


class Said:
    """One message, then and now. `sent`: we say it, others read it."""

    def __init__(self, before: Schema, now: Schema, *, sent: bool) -> None:
        self._before, self._now, self._sent = before, now, sent
        self._seen: set[tuple[str, str]] = set()

    def compare(self, place: str, old: Schema, new: Schema) -> Iterator[str]:
        pair = (str(old.get("$ref")), str(new.get("$ref")))
        if "$ref" in old and pair in self._seen:
            return
        self._seen.add(pair)
        old, new = whole(old, self._before), whole(new, self._now)
        if kinds(old, self._before) - kinds(new, self._now):
            yield f"{place}: was {sorted(kinds(old, self._before))}, is {sorted(kinds(new, self._now))}"
            return
        yield from self._values(place, old, new)
        yield from self._fields(place, old, new)
        if isinstance(old.get("items"), dict) and isinstance(new.get("items"), dict):
            yield from self.compare(f"{place}[]", old["items"], new["items"])

    def _values(self, place: str, old: Schema, new: Schema) -> Iterator[str]:
        if gone := values(old) - values(new) if values(new) else set():
            yield f"{place}: no longer takes {sorted(gone)}"
        if self._sent:
            return
        if values(new) and not values(old):
            yield f"{place}: takes only {sorted(values(new))} now"
        for word in (*LEAST, *MOST):
            narrower = max if word in LEAST else min
            if word in new and (word not in old or narrower(old[word], new[word]) != old[word]):
                yield f"{place}: {word} is {new[word]} now, stricter than before"
        if "pattern" in new and new["pattern"] != old.get("pattern"):
            yield f"{place}: has another pattern"

    def _fields(self, place: str, old: Schema, new: Schema) -> Iterator[str]:
        needed, were = set(new.get("required", [])), set(old.get("required", []))
        for name in sorted(were - needed if self._sent else needed - were):
            yield f"{place}.{name}: {'may be missing now' if self._sent else 'is required now'}"
        for name, field in old.get("properties", {}).items():
            if name not in new.get("properties", {}):
                yield f"{place}.{name}: the field is gone"
            else:
                yield from self.compare(f"{place}.{name}", field, new["properties"][name])


def whole(schema: Schema, root: Schema) -> Schema:
    """With references followed, and what stands beside null in their place."""
    if isinstance(schema.get("$ref"), str):
        return whole(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    parts = [part for part in schema.get("allOf", []) + schema.get("anyOf", []) if part.get("type") != "null"]
    return whole(parts[0], root) if len(parts) == 1 else schema


def kinds(schema: Schema, root: Schema) -> set[str]:
    """The JSON types; a number takes an integer, too. Empty: any."""
    if "anyOf" in schema:
        return {kind for part in schema["anyOf"] for kind in kinds(whole(part, root), root)}
    named = schema.get("type")
    told = {named} if isinstance(named, str) else set(named or ())
    return told | {"integer"} if "number" in told else told


def values(schema: Schema) -> set[str]:
    return {str(value) for value in schema.get("enum", [schema["const"]] if "const" in schema else [])}
