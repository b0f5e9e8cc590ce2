"""Which schemas may constrain an answer, and which answers are the JSON that was requested."""

import json
from typing import Any

import pytest

from actors.llm.json_answers import ANY_JSON_OBJECT, CHECKS, check_answer, check_schema
from bus.errors import PermanentError

TYPED: dict[str, Any] = {
    "$defs": {"name": {"type": "string", "minLength": 1, "maxLength": 20}},
    "type": "object",
    "properties": {"name": {"$ref": "#/$defs/name"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
    "required": ["name"],
    "additionalProperties": False,
}


def nested(levels: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": nested(levels - 1)}} if levels else {}


@pytest.mark.parametrize("schema", [ANY_JSON_OBJECT, TYPED, {}, {"anyOf": [{"type": "null"}, {"const": 1}]}, nested(30)])
async def test_schema_is_accepted(schema: dict[str, Any]) -> None:
    await check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (nested(40), "levels deep"),
        ({"properties": {f"p{number}": {} for number in range(4100)}}, "more than 4000 parts"),
        ({"description": "x" * 70_000}, "bytes"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"allOf": [{"type": "string"}, {"minLength": 1}]}, "merge them"),
        ({"type": "array", "minItems": 1_000_000}, "minItems"),
        ({"type": "string", "maxLength": -1}, "maxLength"),
        ({"type": "string", "pattern": "a" * 501}, "pattern"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"$ref": "https://example.com/x"}, "another document"),
        ({"properties": []}, "properties"),
        ({"items": [1]}, "no schema"),
        ({"anyOf": []}, "anyOf"),
        ({"type": "nonsense"}, "nonsense"),
    ],
)
async def test_schema_is_refused_with_reason(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(PermanentError, match=reason) as raised:
        await check_schema(schema)
    assert raised.value.code == "schema-refused"


@pytest.mark.parametrize(("text", "schema"), [("{}", ANY_JSON_OBJECT), ('{"name": "x", "tags": ["a"]}', TYPED), ("1", {"type": "integer"})])
async def test_requested_json_is_accepted(text: str, schema: dict[str, Any]) -> None:
    await check_answer(text, schema, "stop", 10)


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("Here you are: {}", ANY_JSON_OBJECT),
        ("[]", ANY_JSON_OBJECT),
        ('{"a": NaN}', ANY_JSON_OBJECT),
        ("[" * 100_000, ANY_JSON_OBJECT),
        ('{"name": ""}', TYPED),
        ('{"tags": []}', TYPED),
        ('{"name": "x", "other": 1}', TYPED),
        ('{"name": "x", "tags": ["c"]}', TYPED),
    ],
)
async def test_other_answers_are_refused(text: str, schema: dict[str, Any]) -> None:
    with pytest.raises(PermanentError) as raised:
        await check_answer(text, schema, "stop", 10)
    assert raised.value.code == "json-unsupported"


async def test_cut_json_names_its_limit() -> None:
    with pytest.raises(PermanentError, match="limit of 7 tokens") as raised:
        await check_answer('{"a": ', ANY_JSON_OBJECT, "length", 7)
    assert raised.value.code == "json-incomplete"


async def test_pattern_of_exponential_time_is_stopped() -> None:
    """In a process of its own; the next check works."""
    schema = {"type": "string", "pattern": "^(a+)+$"}
    with pytest.raises(PermanentError, match="processor time") as raised:
        await check_answer(json.dumps("a" * 60 + "!"), schema, "stop", 100)
    assert raised.value.code == "schema-refused"
    await check_answer('"aaa"', schema, "stop", 100)
    assert CHECKS is not None
