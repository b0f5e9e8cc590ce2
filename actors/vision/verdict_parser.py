"""What a model has said, read. A verdict is read strictly; where a server could not be made to keep the form, it is mended and marked."""

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from actors.engines.language.requests import VlmResponse
from actors.vision.labelled_lines import parse_labelled_lines
from actors.vision.prompts import ANSWER_MARK, THOUGHT_MARK
from bus.errors import TemporaryError

VerdictT = TypeVar("VerdictT", bound=BaseModel)

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""Control characters: no person reads them, and Postgres keeps no U+0000."""

SENTENCE_ENDINGS = ("다.", "요.", "습니다.", "세요.", "니다.")
"""A Korean sentence that has come to its end."""


def trim_repetition(text: str) -> str:
    """The answer of a consultation, cut where it starts over.

    Paragraphs that begin with a section's mark belong to it. Any other belongs to it only as the second, and only when the first
    stops in the middle.
    """
    parts = CONTROL_CHARACTERS.sub("", text).split("\n\n")
    kept = parts[:1]
    for number, part in enumerate(parts[1:], start=1):
        if not part.startswith((ANSWER_MARK, THOUGHT_MARK)) and (number > 1 or kept[0].endswith(SENTENCE_ENDINGS)):
            break
        kept.append(part)
    return "\n\n".join(kept).strip()


def parse_verdict(answer: VlmResponse, model: type[VerdictT]) -> tuple[VerdictT, bool]:
    """The verdict, and whether it had to be mended.

    Raises TemporaryError("verdict-unfinished" · "verdict-unreadable"): what cannot be read is never taken for a verdict.
    """
    try:
        return model.model_validate_json(answer.text), False
    except ValidationError:
        if answer.finish_reason == "length":
            message = f"the model stopped at its limit of {answer.completion_tokens} tokens in the middle of the verdict; allow more"
            raise TemporaryError(message, code="verdict-unfinished") from None
    for candidate in (*find_json_objects(answer.text), parse_labelled_lines(answer.text, model)):
        try:
            return model.model_validate(repair_fields(candidate, model)), True
        except ValidationError:
            continue
    raise TemporaryError(f"the model's answer holds no verdict: {answer.text[:200]!r}", code="verdict-unreadable")


def find_json_objects(text: str) -> list[dict[str, Any]]:
    """Every outermost JSON object in free text, the last first: models correct themselves. Bad escapes and trailing commas are mended."""
    text = re.sub(r'\\(?![\\"/bfnrtu])', "", text)
    text = re.sub(r",\s*([}\]])", r"\1", text)
    found, decoder, start = [], json.JSONDecoder(strict=False), 0
    while (start := text.find("{", start)) >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        found.append(value)
        start = end
    return found[::-1]


def repair_fields(value: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Only the form is mended: fields nobody asked for go, texts and lists are cut to their bounds. What was not said is not made up."""
    fields = model.model_fields
    schema = model.model_json_schema()
    return {name: _coerce(said, schema["properties"][name], schema.get("$defs", {})) for name, said in value.items() if name in fields}


def _coerce(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    kind = schema.get("type")
    if kind == "object" and isinstance(value, dict):
        return {
            name: _coerce(part, schema["properties"][name], definitions) for name, part in value.items() if name in schema["properties"]
        }
    if kind == "array":
        listed = value if isinstance(value, list) else [value] if isinstance(value, str) and value.strip() else []
        return [_coerce(item, schema["items"], definitions) for item in listed[: schema["maxItems"]]]
    if kind == "boolean" and isinstance(value, str):
        return {"true": True, "yes": True, "false": False, "no": False}.get(value.strip().lower(), value)
    if kind == "string" and "pattern" in schema and isinstance(value, str):
        return _coerce_text(value, schema["pattern"])
    return value


def _coerce_text(text: str, pattern: str) -> str:
    if re.fullmatch(pattern, text):
        return text
    if pattern.startswith("^[0-9a-f]"):
        return text.strip().lstrip("#").lower()
    longest = int(re.findall(r"(\d+)\}\$$", pattern)[0])
    plain = re.sub(r"[\x00-\x1f\x7f]+", " ", text).replace('"', "'").replace("\\", "/").strip()
    return plain[:longest].strip()
