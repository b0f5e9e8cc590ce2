"""Parses an answer in lines such as `on_brief: yes` into the fields of a verdict. The source system's models answer in this form.

A field that has two different values is dropped.
"""

import re
from typing import Any

from pydantic import BaseModel

LABELLED_LINE = re.compile(r"^[\s*#>\d.)(_-]*\"?([A-Za-z][A-Za-z _/-]{1,40}?)[\s*\"_]*[:=]\s*(.*)$")
BOOLEAN_PATTERN = re.compile(r"(yes|true|no|false|suitable|not suitable|unsuitable)(?=$|[.,;:(–—-]|\s+[–—-])")
TRUE_WORDS = frozenset({"yes", "true", "suitable"})
SCORE_PATTERN = re.compile(r"(\d{1,9}(?:\.\d{1,99})?)\s*(?:/\s*(\d{1,9})|(%))?(?=$|[\s.,;(–—-])")
EMPTY_WORDS = frozenset({"", "none", "n/a", "no issues", "nothing", "[]", "-", "없음"})
LABEL_SYNONYMS = {"match_score": "relevance_score", "relevance": "relevance_score", "overall_assessment": "is_valid", "cta": "cta_present"}
"""Labels of the source system's own prompts."""


def parse_labelled_lines(text: str, model: type[BaseModel]) -> dict[str, Any]:
    """The values of the model's fields; empty when the text has none."""
    schema = model.model_json_schema()
    fields = {name: _resolve_ref(part, schema) for name, part in schema["properties"].items()}
    nested = {name: (outer, part) for outer, field in fields.items() for name, part in field.get("properties", {}).items()}
    leaves = {name: field for name, field in fields.items() if "properties" not in field} | {
        name: part for name, (_, part) in nested.items()
    }
    verdict: dict[str, Any] = {}
    for name, value in _collect_fields(text, set(leaves) | set(fields)).items():
        if name in leaves:
            parent = verdict.setdefault(nested[name][0], {}) if name in nested else verdict
            parent[name] = _parse_value(value, leaves[name])
    return verdict


def _resolve_ref(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    resolved: dict[str, Any] = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
    return resolved


def _collect_fields(text: str, names: set[str]) -> dict[str, str]:
    """Label → all its lines. A line without a known label continues the one before."""
    values: dict[str, list[str]] = {}
    ambiguous: set[str] = set()
    current: list[str] = []
    for line in text.splitlines():
        match = LABELLED_LINE.match(line)
        label = re.sub(r"[\s/-]+", "_", match[1].strip().lower()) if match else ""
        label = LABEL_SYNONYMS.get(label, label)
        if not match or label not in names:
            current.append(line.strip())
            continue
        current = [match[2].strip().strip("*").strip()]
        if label in values and values[label] != current:
            ambiguous.add(label)
        values[label] = current
    return {label: "\n".join(lines).strip() for label, lines in values.items() if label not in ambiguous}


def _parse_value(text: str, schema: dict[str, Any]) -> Any:
    """The value in the schema's type; text that cannot be read as that type is returned unchanged, and the schema rejects it."""
    text = text.strip('",') if schema.get("type") != "array" else text
    match schema.get("type"):
        case "boolean":
            found = BOOLEAN_PATTERN.match(text.lower())
            return found[1] in TRUE_WORDS if found else text
        case "number":
            return _parse_score(text)
        case "array":
            parts = re.split(r"\n|;", text.strip("[]"))
            items = [re.sub(r"^[\s*•\d.)-]+", "", part).strip().strip('",') for part in parts]
            return [item for item in items if item.lower().rstrip(".") not in EMPTY_WORDS]
    if "enum" in schema:
        return text.lower().rstrip(".")
    return " ".join(text.split())


def _parse_score(text: str) -> float | str:
    found = SCORE_PATTERN.match(text)
    if not found:
        return text
    return float(found[1]) / (100 if found[3] else int(found[2] or 1) or 1)
