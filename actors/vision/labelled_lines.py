"""An answer in lines such as `on_brief: yes`, read as the fields of a verdict. The source system's models answer so.

Only what was said counts: a field that is said twice, and differently, is no field at all.
"""

import re
from typing import Any

from pydantic import BaseModel

LABELLED_LINE = re.compile(r"^[\s*#>\d.)(_-]*\"?([A-Za-z][A-Za-z _/-]{1,40}?)[\s*\"_]*[:=]\s*(.*)$")
BOOLEAN_PATTERN = re.compile(r"(yes|true|no|false|suitable|not suitable|unsuitable)(?=$|[.,;:(–—-]|\s+[–—-])")
TRUE_WORDS = frozenset({"yes", "true", "suitable"})
SCORE_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/\s*(\d+)|(%))?(?=$|[\s.,;(–—-])")
EMPTY_WORDS = frozenset({"", "none", "n/a", "no issues", "nothing", "[]", "-", "없음"})
LABEL_SYNONYMS = {"match_score": "relevance_score", "relevance": "relevance_score", "overall_assessment": "is_valid", "cta": "cta_present"}
"""Labels of the source system's own prompts."""


def parse_labelled_lines(text: str, model: type[BaseModel]) -> dict[str, Any]:
    """What the lines say about the model's fields; empty when they say nothing clearly."""
    schema = model.model_json_schema()
    kinds = {name: _resolve_ref(part, schema) for name, part in schema["properties"].items()}
    inner = {name: (outer, part) for outer, kind in kinds.items() for name, part in kind.get("properties", {}).items()}
    flat = {name: kind for name, kind in kinds.items() if "properties" not in kind} | {name: part for name, (_, part) in inner.items()}
    verdict: dict[str, Any] = {}
    for name, said in _collect_fields(text, set(flat) | set(kinds)).items():
        if name in flat:
            home = verdict.setdefault(inner[name][0], {}) if name in inner else verdict
            home[name] = _parse_value(said, flat[name])
    return verdict


def _resolve_ref(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    resolved: dict[str, Any] = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
    return resolved


def _collect_fields(text: str, names: set[str]) -> dict[str, str]:
    """Label → all its lines. A line without a known label goes on with the one before."""
    said: dict[str, list[str]] = {}
    twice: set[str] = set()
    current: list[str] = []
    for line in text.splitlines():
        found = LABELLED_LINE.match(line)
        label = re.sub(r"[\s/-]+", "_", found[1].strip().lower()) if found else ""
        label = LABEL_SYNONYMS.get(label, label)
        if not found or label not in names:
            current.append(line.strip())
            continue
        current = [found[2].strip().strip("*").strip()]
        if label in said and said[label] != current:
            twice.add(label)
        said[label] = current
    return {label: "\n".join(lines).strip() for label, lines in said.items() if label not in twice}


def _parse_value(text: str, schema: dict[str, Any]) -> Any:
    """As the schema wants it, where the words say it plainly; else the words, which the schema then refuses."""
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
