"""What a model has said, read. A verdict is read strictly; where a server could not be made to keep the form, it is mended and marked."""

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from actors.engines.vlm import Answer
from actors.seeing.labels import labelled
from actors.seeing.prompts import ANSWER_MARK, THOUGHT_MARK
from bus.errors import TemporaryError

Verdict = TypeVar("Verdict", bound=BaseModel)

UNTOLD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""Control characters: no person reads them, and Postgres keeps no U+0000."""

ENDINGS = ("다.", "요.", "습니다.", "세요.", "니다.")
"""A Korean sentence that has come to its end."""


def without_repetition(text: str) -> str:
    """The answer of a consultation, cut where it starts over.

    Paragraphs that begin with a section's mark belong to it. Any other belongs to it only as the second, and only when the first
    stops in the middle.
    """
    parts = UNTOLD.sub("", text).split("\n\n")
    kept = parts[:1]
    for number, part in enumerate(parts[1:], start=1):
        if not part.startswith((ANSWER_MARK, THOUGHT_MARK)) and (number > 1 or kept[0].endswith(ENDINGS)):
            break
        kept.append(part)
    return "\n\n".join(kept).strip()


def read_verdict(answer: Answer, model: type[Verdict]) -> tuple[Verdict, bool]:
    """The verdict, and whether it had to be mended.

    Raises TemporaryError("verdict-unfinished" · "verdict-unreadable"): what cannot be read is never taken for a verdict.
    """
    try:
        return model.model_validate_json(answer.text), False
    except ValidationError:
        if answer.finish == "length":
            message = f"the model stopped at its limit of {answer.tokens} tokens in the middle of the verdict; allow more"
            raise TemporaryError(message, code="verdict-unfinished") from None
    for candidate in (*objects_in(answer.text), labelled(answer.text, model)):
        try:
            return model.model_validate(mended(candidate, model)), True
        except ValidationError:
            continue
    raise TemporaryError(f"the model's answer holds no verdict: {answer.text[:200]!r}", code="verdict-unreadable")


def objects_in(text: str) -> list[dict[str, Any]]:
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


def mended(value: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Only the form is mended: fields nobody asked for go, texts and lists are cut to their bounds. What was not said is not made up."""
    fields = model.model_fields
    schema = model.model_json_schema()
    return {name: _fitted(said, schema["properties"][name], schema.get("$defs", {})) for name, said in value.items() if name in fields}


def _fitted(said: Any, schema: dict[str, Any], named: dict[str, Any]) -> Any:
    if "$ref" in schema:
        schema = named[schema["$ref"].rpartition("/")[2]]
    kind = schema.get("type")
    if kind == "object" and isinstance(said, dict):
        return {name: _fitted(part, schema["properties"][name], named) for name, part in said.items() if name in schema["properties"]}
    if kind == "array":
        listed = said if isinstance(said, list) else [said] if isinstance(said, str) and said.strip() else []
        return [_fitted(item, schema["items"], named) for item in listed[: schema["maxItems"]]]
    if kind == "boolean" and isinstance(said, str):
        return {"true": True, "yes": True, "false": False, "no": False}.get(said.strip().lower(), said)
    if kind == "string" and "pattern" in schema and isinstance(said, str):
        return _fitted_text(said, schema["pattern"])
    return said


def _fitted_text(said: str, pattern: str) -> str:
    if re.fullmatch(pattern, said):
        return said
    if pattern.startswith("^[0-9a-f]"):
        return said.strip().lstrip("#").lower()
    longest = int(re.findall(r"(\d+)\}\$$", pattern)[0])
    plain = re.sub(r"[\x00-\x1f\x7f]+", " ", said).replace('"', "'").replace("\\", "/").strip()
    return plain[:longest].strip()
