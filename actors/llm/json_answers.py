"""JSON that was requested: which schemas may constrain an answer, and whether an answer is what was requested.

A schema comes from outside. Its size is limited here; what costs more, regular expressions above all, runs in a process that is killed.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from actors.decoding.pool import DecoderPool, Job
from actors.engines.language.requests import FinishReason
from actors.llm.json_extraction import MAX_ANSWER_CHARS
from bus.errors import PermanentError

ANY_JSON_OBJECT: dict[str, Any] = {"type": "object"}
MAX_SCHEMA_BYTES, MAX_DEPTH, MAX_NODES = 64 << 10, 32, 4000
MAX_COUNT = 10_000
"""Of items, characters and properties."""
MAX_PROPERTIES = 400
"""Of all objects in a schema: the time to compile optional ones grows with the square of their number."""
MAX_PATTERN_CHARS = 500
SCHEMA_SECONDS, ANSWER_SECONDS, CHECK_MEMORY_BYTES = 0.5, 1.0, 512 << 20
"""Processor time to check a schema, and an answer."""
ENFORCED_KEYWORDS = frozenset({
    *("type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "enum", "const"),
    *("anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
})  # fmt: skip
ANNOTATIONS = frozenset({
    *("title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly", "nullable"),
    *("propertyOrdering", "x-order"),
})  # fmt: skip
COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength"})
SCHEMA_MAPS = frozenset({"properties", "$defs", "definitions"})
"""Keywords whose value maps names to schemas."""
STRING_KEYWORDS = frozenset({"minLength", "maxLength", "pattern", "format"})
NUMBER_KEYWORDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
CHOICES = frozenset({"anyOf", "oneOf", "allOf", "$ref"})
"""Grammars enforce nothing else in the same schema."""
CHECKS = DecoderPool()
TENANT_LOCKS: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
"""A tenant has one check at a time, so that one with slow schemas leaves processes to the others."""


@dataclass(frozen=True)
class SchemaNode:
    """One schema inside another. `path`: where it stands, for the error."""

    schema: Any
    path: str
    depth: int


async def check_schema(schema: dict[str, Any], tenant: str = "") -> None:
    """Raises PermanentError("schema-refused") with the reason for a schema that is too large, or that no engine can enforce."""
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise refused(f"it has more than {MAX_SCHEMA_BYTES} bytes")
    items = characters = properties = 0
    for count, node in enumerate(walk(schema)):
        if count > MAX_NODES:
            raise refused(f"it has more than {MAX_NODES} parts")
        check_node(node)
        if isinstance(node.schema, dict):
            items += max(node.schema.get("minItems", 0), node.schema.get("maxItems", 0))
            characters += max(node.schema.get("minLength", 0), node.schema.get("maxLength", 0))
            properties += len(node.schema.get("properties", ()))
    for number, limit, what in (
        (items, MAX_COUNT, "items"),
        (characters, MAX_COUNT, "characters"),
        (properties, MAX_PROPERTIES, "properties"),
    ):
        if number > limit:
            raise refused(f"its parts together allow {number} {what}, more than {limit}, which takes too long to compile")
    if schema != ANY_JSON_OBJECT:
        await run_check({"schema": schema}, b"", SCHEMA_SECONDS, tenant)


async def run_check(arguments: dict[str, Any], data: bytes, cpu_seconds: float, tenant: str) -> dict[str, Any]:
    async with TENANT_LOCKS.setdefault(tenant, asyncio.Lock()):
        header, _ = await CHECKS.decode_async(check_job(arguments, cpu_seconds), data)
    return header


def walk(schema: Any) -> Iterator[SchemaNode]:
    """Every schema inside `schema`, itself first. Raises PermanentError for one that is nested too deeply or is none."""
    pending = [SchemaNode(schema, "the schema", 0)]
    while pending:
        node = pending.pop()
        if node.depth > MAX_DEPTH:
            raise refused(f"it is nested more than {MAX_DEPTH} levels deep")
        yield node
        if isinstance(node.schema, dict):
            for name, value in node.schema.items():
                pending.extend(SchemaNode(child, f"{node.path}.{key}", node.depth + 1) for key, child in children(name, value))


def children(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The schemas in the value of one keyword, with their names."""
    if name in SCHEMA_MAPS:
        if not isinstance(value, dict):
            raise refused(f"{name} must be an object")
        yield from ((f"{name}.{key}", child) for key, child in value.items())
    elif name in {"anyOf", "oneOf", "allOf", "prefixItems"}:
        if not isinstance(value, list) or not value:
            raise refused(f"{name} must be a list of schemas")
        yield from ((f"{name}[{number}]", child) for number, child in enumerate(value))
    elif name in {"items", "additionalProperties"}:
        yield name, value


def check_node(node: SchemaNode) -> None:
    """Raises PermanentError for a keyword that is not enforced while decoding, and for a number that would make an answer endless."""
    if isinstance(node.schema, bool):
        return
    if not isinstance(node.schema, dict):
        raise refused(f"{node.path} is no schema")
    if unknown := node.schema.keys() - ENFORCED_KEYWORDS - ANNOTATIONS:
        raise refused(f"{node.path} has keywords that cannot be enforced: {', '.join(sorted(map(str, unknown)))[:200]}")
    for name in COUNTS & node.schema.keys():
        value = node.schema[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
            raise refused(f"{name} of {node.path} must be a number from 0 to {MAX_COUNT}")
    if isinstance(schemas := node.schema.get("allOf"), list) and len(schemas) > 1:
        raise refused(f"{node.path} has several schemas in allOf, which cannot be enforced together: merge them")
    reference = node.schema.get("$ref")
    if reference is not None and not str(reference).startswith("#"):
        raise refused(f"{node.path} refers to another document: {str(reference)[:100]}")
    if len(str(node.schema.get("pattern", ""))) > MAX_PATTERN_CHARS:
        raise refused(f"the pattern of {node.path} has more than {MAX_PATTERN_CHARS} characters")
    check_neighbours(node.schema, node.path)


def check_neighbours(schema: dict[str, Any], path: str) -> None:
    """Raises PermanentError for keywords that a grammar does not enforce beside each other, or alone."""
    names = schema.keys() & ENFORCED_KEYWORDS - {"$defs", "definitions"}
    if (choice := names & CHOICES) and (beside := sorted(names - {min(choice)})):
        raise refused(
            f"{path} has {', '.join(beside)} beside {min(choice)}, which is not enforced: move it into the schemas of {min(choice)}"
        )
    if names & {"pattern", "format"} and (lengths := sorted(names & {"minLength", "maxLength"})):
        raise refused(f"{path} has {', '.join(lengths)} beside a pattern or format, which is not enforced: write the length in the pattern")
    if "type" not in names and (typed := sorted(names & (STRING_KEYWORDS | NUMBER_KEYWORDS))):
        raise refused(f"{path} has {', '.join(typed)} without a type, which is not enforced")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return  # the check against the metaschema refuses it
    if missing := sorted(str(name) for name in required if str(name) not in properties):
        raise refused(f"{path} requires {', '.join(missing)[:200]}, which its properties lack")


def refused(reason: str) -> PermanentError:
    return PermanentError("schema-refused", f"The JSON schema is not accepted: {reason}.")


async def check_answer(
    text: str,
    schema: dict[str, Any],
    finish_reason: FinishReason | None,
    max_tokens: int,
    *,
    constrained: bool = False,
    tenant: str = "",
) -> None:
    """Raises PermanentError("content-filtered") for an answer that its server filtered, ("json-incomplete") for JSON that was cut at its
    token limit, else ("json-unsupported") for a text that does not satisfy the schema. `constrained`: a grammar constrained the answer,
    so the schema has a part that it cannot enforce.
    """
    reason = explain_invalid_json(text, schema)
    if reason is None and schema != ANY_JSON_OBJECT:
        header = await run_check({"schema": schema, "check": True}, text.encode(), ANSWER_SECONDS, tenant)
        reason = header.get("reason")
    if reason is None:
        return
    if finish_reason == "content_filter":
        raise PermanentError(
            "content-filtered", "The model's server filtered its answer, or refused to give one; it is not the JSON asked for."
        )
    if finish_reason == "length":
        message = f"The answer was cut at its limit of {max_tokens} tokens before its JSON was complete. Allow more, or ask for less."
        raise PermanentError("json-incomplete", message)
    cause = "The schema has a part that decoding does not enforce: simplify it." if constrained else "Its server ignores the schema."
    raise PermanentError("json-unsupported", f"JSON was requested, and the model's answer is not: {reason}. {cause}")


def explain_invalid_json(text: str, schema: dict[str, Any]) -> str | None:
    """Why a text is no JSON, or no object where any object was requested; None when it is."""
    if len(text) > MAX_ANSWER_CHARS:
        return f"it has more than {MAX_ANSWER_CHARS} characters"
    try:
        value = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        return str(error)[:200]
    return None if schema != ANY_JSON_OBJECT or isinstance(value, dict) else "it is no JSON object"


def refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name} is no JSON")


def check_job(arguments: dict[str, Any], cpu_seconds: float) -> Job:
    return Job(
        kind="json-schema",
        arguments=arguments,
        cpu_seconds=cpu_seconds,
        wall_seconds=10 * cpu_seconds,
        memory_bytes=CHECK_MEMORY_BYTES,
        max_answer_bytes=0,
        broken_code="schema-refused",
        costly_code="schema-refused",
    )
