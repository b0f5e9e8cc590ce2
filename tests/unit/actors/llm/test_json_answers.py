"""Which schemas may constrain an answer, and which answers are the JSON that was requested."""

import asyncio
import json
import time
from typing import Any

import pytest

from actors.llm.json_answers import ANY_JSON_OBJECT, SCHEMA_SECONDS, check_answer, check_schema
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


@pytest.mark.parametrize(
    "schema",
    [
        *(ANY_JSON_OBJECT, TYPED, {}, {"anyOf": [{"type": "null"}, {"const": 1}]}, nested(30)),
        {"enum": [{"pattern": "("}], "examples": [{"pattern": "("}], "default": {"pattern": "("}},
        {"type": "object", "properties": {"pattern": {"type": "string"}, "const": {"type": "string", "pattern": "^.{1,900}$"}}},
        {"$ref": "#/$defs/a", "title": "A", "$defs": {"a": {"allOf": [{"type": "null"}], "description": "none"}}},
    ],
)
async def test_schema_is_accepted(schema: dict[str, Any]) -> None:
    await check_schema(schema)


def properties(count: int, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": schema for number in range(count)}}


SLOW_TO_COMPILE: list[dict[str, Any]] = [
    {"type": "string", "pattern": r"^[\u0000-\uffff]{0,9999}$"},
    {"type": "string", "pattern": "^((a{1,50}b){1,50}c){1,50}$"},
    {"type": "string", "pattern": "^(a{40}){40}|b*?c{600}$"},
    properties(2, {"type": "string", "pattern": "^.{0,600}$"}),
    properties(200, {"type": "array", "maxItems": 10_000, "items": {"type": "string", "maxLength": 10_000}}),
    properties(900, {"type": "string"}),
    properties(30, properties(30, {"type": "integer"})),
]
"""One model process compiles the schemas of all tenants."""


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
        ({"allOf": 5}, "allOf"),
        ({"allOf": None}, "allOf"),
        ({"required": 5}, "array"),
        ({"type": "object", "required": ["a"], "properties": {"b": {}}}, "requires a"),
        ({"type": "object", "anyOf": [{"properties": {"a": {}}}], "properties": {"b": {}}}, "beside anyOf"),
        ({"$ref": "#/$defs/a", "anyOf": [{}], "$defs": {"a": {}}}, "beside"),
        ({"type": "string", "pattern": "^a*$", "maxLength": 3}, "write the length in the pattern"),
        ({"maxLength": 3}, "without a type"),
        ({"minimum": 3}, "without a type"),
        ({"const": 1, "properties": {"const": {"type": "string", "pattern": "("}}}, "regex"),
        *[(schema, "patterns|compile") for schema in SLOW_TO_COMPILE],
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


async def test_slow_checks_of_one_tenant_delay_no_other() -> None:
    """Eight answers that each take the whole time of a check."""
    await asyncio.gather(*(check_schema({"type": "integer"}, tenant) for tenant in "ab"))
    answer, schema = json.dumps("a" * 60 + "!"), {"type": "string", "pattern": "^(a+)+$"}
    slow = [asyncio.create_task(check_answer(answer, schema, "stop", 10, tenant="a")) for _ in range(8)]
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await check_schema({"type": "integer"}, "b")
    waited = time.monotonic() - started
    assert not any(task.done() for task in slow[1:])
    for task in slow:
        task.cancel()
    assert {getattr(result, "code", "cancelled") for result in await asyncio.gather(*slow, return_exceptions=True)} <= {"cancelled"}
    assert waited < 4 * SCHEMA_SECONDS


async def test_answer_of_constraining_engine_blames_the_schema() -> None:
    with pytest.raises(PermanentError, match="simplify it") as raised:
        await check_answer("1", {"type": "string"}, "stop", 10, constrained=True)
    assert raised.value.code == "json-unsupported"
    assert "ignores" not in str(raised.value)
