"""Parses a model's answers. A verdict must match its schema; an answer that was not constrained to it is repaired, and marked as such."""

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from actors.engines.language.requests import VlmResponse
from actors.vision.labelled_lines import parse_labelled_lines
from actors.vision.prompts import ANSWER_MARK, THOUGHT_MARK
from actors.vision.schema_limits import LENGTH_SUFFIX
from bus.errors import TemporaryError
from contracts.validate import COLOR_WORDS
from contracts.verdict import VerdictSchema

VerdictT = TypeVar("VerdictT", bound=VerdictSchema)

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""Removed from answers: they are not readable, and Postgres cannot store U+0000."""

MAX_ANSWER_CHARS = 1 << 16
"""More than any model answers; the rest of a text is not searched for a verdict."""
FIELD_SYNONYMS = {"style": "font_style", "size": "font_size_category", "color": "font_color_hex"}
"""The fields of the font in the source system's prompt."""
MAX_OBJECT_STARTS = 64
"""Braces at which a JSON object is tried: each try may read the whole text."""

SENTENCE_ENDINGS = ("다.", "요.", "습니다.", "세요.", "니다.")
"""Endings of a complete Korean sentence."""


def trim_repetition(text: str) -> str:
    """The answer of a consultation, cut off where the model starts to repeat itself.

    A paragraph that begins with a section mark belongs to the answer. Any other belongs to it only as the second one, and only when the
    first paragraph is incomplete.
    """
    paragraphs = CONTROL_CHARACTERS.sub("", text).split("\n\n")
    kept = paragraphs[:1]
    for number, paragraph in enumerate(paragraphs[1:], start=1):
        if not paragraph.startswith((ANSWER_MARK, THOUGHT_MARK)) and (number > 1 or kept[0].endswith(SENTENCE_ENDINGS)):
            break
        kept.append(paragraph)
    return "\n\n".join(kept).strip()


def parse_verdict(response: VlmResponse, accepted: type[VerdictT], schema: type[VerdictSchema] | None = None) -> tuple[VerdictT, bool]:
    """The verdict, and whether it was repaired. `schema`: what was asked for; a repaired answer needs to match `accepted` only.

    Raises TemporaryError("verdict-unfinished" · "verdict-unreadable").
    """
    schema = schema or accepted
    try:
        return accepted.model_validate(schema.model_validate_json(response.text).model_dump()), False
    except ValidationError:
        if response.finish_reason == "length":
            message = f"the model stopped at its limit of {response.completion_tokens} tokens in the middle of the verdict; allow more"
            raise TemporaryError(message, code="verdict-unfinished") from None
    text = response.text[:MAX_ANSWER_CHARS]
    for candidate in (*find_json_objects(text), parse_labelled_lines(text, schema)):
        try:
            return accepted.model_validate(repair_fields(candidate, schema)), True
        except ValidationError:
            continue
    raise TemporaryError(f"the model's answer holds no verdict: {response.text[:200]!r}", code="verdict-unreadable")


def readable_text(answer: str) -> str:
    """An answer as a text that Postgres can store."""
    return CONTROL_CHARACTERS.sub("", answer[:MAX_ANSWER_CHARS]).strip()


def find_json_objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in a text, the last first, since models correct themselves. Repairs bad escapes and trailing commas."""
    text = re.sub(r'\\(?![\\"/bfnrtu])', "", text)
    text = re.sub(r",\s*([}\]])", r"\1", text)
    objects, decoder, start = [], json.JSONDecoder(strict=False), 0
    for _ in range(MAX_OBJECT_STARTS):
        if (start := text.find("{", start)) < 0:
            break
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        objects.append(value)
        start = end
    return objects[::-1]


def repair_fields(value: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Repairs the form only: removes unknown fields, and shortens texts and lists to their limits. Missing values are not invented."""
    schema = model.model_json_schema()
    return _coerce_fields(value, schema["properties"], schema.get("$defs", {}))


def _coerce_fields(value: dict[str, Any], properties: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    named = {FIELD_SYNONYMS.get(name, name) if name not in properties else name: part for name, part in value.items()}
    return {name: _coerce(part, properties[name], definitions) for name, part in named.items() if name in properties}


def _coerce(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    kind = schema.get("type")
    if kind == "object" and isinstance(value, dict):
        return _coerce_fields(value, schema["properties"], definitions)
    if kind == "array":
        items = value if isinstance(value, list) else [value] if isinstance(value, str) and value.strip() else []
        return [_coerce(item, schema["items"], definitions) for item in items[: schema["maxItems"]]]
    if kind == "boolean" and isinstance(value, str):
        return {"true": True, "yes": True, "false": False, "no": False}.get(value.strip().lower(), value)
    if "enum" in schema and isinstance(value, str):
        return value.strip().lower()
    if kind == "string" and "pattern" in schema and isinstance(value, str):
        return _coerce_text(value, schema["pattern"])
    return value


def _coerce_text(text: str, pattern: str) -> str:
    if re.fullmatch(pattern, text):
        return text
    if pattern.startswith("^[0-9a-f]"):
        return COLOR_WORDS.get(text.strip().lower(), text.strip().lstrip("#").lower())
    count = LENGTH_SUFFIX.search(pattern)
    max_chars = int(count[1]) if count else 0
    plain = re.sub(r"[\x00-\x1f\x7f]+", " ", text).replace('"', "'").replace("\\", "/").strip()
    return plain[:max_chars].strip()
