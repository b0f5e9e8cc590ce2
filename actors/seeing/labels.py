"""An answer in lines such as `on_brief: yes`, read as the fields of a verdict. The source system's models answer so.

Only what was said counts: a field that is said twice, and differently, is no field at all.
"""

import re
from typing import Any

from pydantic import BaseModel

LINE = re.compile(r"^[\s*#>\d.)(_-]*\"?([A-Za-z][A-Za-z _/-]{1,40}?)[\s*\"_]*[:=]\s*(.*)$")
TRUTH = re.compile(r"(yes|true|no|false|suitable|not suitable|unsuitable)(?=$|[.,;:(–—-]|\s+[–—-])")
TRUE = frozenset({"yes", "true", "suitable"})
SCORE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/\s*(\d+)|(%))?(?=$|[\s.,;(–—-])")
NOTHING = frozenset({"", "none", "n/a", "no issues", "nothing", "[]", "-", "없음"})
SYNONYMS = {"match_score": "relevance_score", "relevance": "relevance_score", "overall_assessment": "is_valid", "cta": "cta_present"}
"""Labels of the source system's own prompts."""


def labelled(text: str, model: type[BaseModel]) -> dict[str, Any]:
    """What the lines say about the model's fields; empty when they say nothing clearly."""
    schema = model.model_json_schema()
    kinds = {name: _resolved(part, schema) for name, part in schema["properties"].items()}
    inner = {name: (outer, part) for outer, kind in kinds.items() for name, part in kind.get("properties", {}).items()}
    flat = {name: kind for name, kind in kinds.items() if "properties" not in kind} | {name: part for name, (_, part) in inner.items()}
    verdict: dict[str, Any] = {}
    for name, said in _said(text, set(flat) | set(kinds)).items():
        if name in flat:
            home = verdict.setdefault(inner[name][0], {}) if name in inner else verdict
            home[name] = _value(said, flat[name])
    return verdict


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    resolved: dict[str, Any] = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
    return resolved


def _said(text: str, names: set[str]) -> dict[str, str]:
    """Label → all its lines. A line without a known label goes on with the one before."""
    said: dict[str, list[str]] = {}
    twice: set[str] = set()
    current: list[str] = []
    for line in text.splitlines():
        found = LINE.match(line)
        label = re.sub(r"[\s/-]+", "_", found[1].strip().lower()) if found else ""
        label = SYNONYMS.get(label, label)
        if not found or label not in names:
            current.append(line.strip())
            continue
        current = [found[2].strip().strip("*").strip()]
        if label in said and said[label] != current:
            twice.add(label)
        said[label] = current
    return {label: "\n".join(lines).strip() for label, lines in said.items() if label not in twice}


def _value(said: str, kind: dict[str, Any]) -> Any:
    """As the schema wants it, where the words say it plainly; else the words, which the schema then refuses."""
    said = said.strip('",') if kind.get("type") != "array" else said
    match kind.get("type"):
        case "boolean":
            found = TRUTH.match(said.lower())
            return found[1] in TRUE if found else said
        case "number":
            return _score(said)
        case "array":
            parts = re.split(r"\n|;", said.strip("[]"))
            items = [re.sub(r"^[\s*•\d.)-]+", "", part).strip().strip('",') for part in parts]
            return [item for item in items if item.lower().rstrip(".") not in NOTHING]
    if "enum" in kind:
        return said.lower().rstrip(".")
    return " ".join(said.split())


def _score(said: str) -> float | str:
    found = SCORE.match(said)
    if not found:
        return said
    return float(found[1]) / (100 if found[3] else int(found[2] or 1) or 1)
