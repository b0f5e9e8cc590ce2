"""Messages as strangers send them, made by hypothesis: some keep a contract, most nearly keep it, some are plainly hostile."""

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

NESTING_DEPTH = 5_000

ODD_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=30),
    st.sampled_from(["", "\x00", "../../etc/passwd", "http://127.0.0.1/", "file:///etc/passwd", "a\r\nX-Evil: 1", "\ud800", "９", "1e999"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@dataclass(frozen=True)
class FuzzMessage:
    body: bytes
    properties: dict[str, Any] = field(default_factory=dict)


def schema_values(schema: dict[str, Any], models: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """What a JSON schema allows, roughly: limits are sometimes passed."""
    if "$ref" in schema:
        return schema_values(models[schema["$ref"].rpartition("/")[2]], models, depth + 1)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of(*(schema_values(option, models, depth + 1) for option in options))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "string":
            return st.text(max_size=min(schema.get("maxLength", 20), 40))
        case "integer":
            return st.integers(int(schema.get("minimum", -3)) - 1, int(schema.get("maximum", 2**31)) + 1)
        case "number":
            return st.floats(schema.get("minimum", -1.0), schema.get("maximum", 1e6))
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(schema_values(schema.get("items", {}), models, depth + 1), max_size=3 if depth < 4 else 0)
        case "object" if "properties" in schema:
            return mutated_objects(schema, models, depth)
        case _:
            return ODD_VALUES


def mutated_objects(schema: dict[str, Any], models: dict[str, Any], depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """An object of the schema; now and then a field of it is odd, missing, or unknown."""
    needed = set(schema.get("required", ()))
    wanted = {name: part for name, part in schema["properties"].items() if depth < 4 or name in needed}
    fields = {name: st.one_of(schema_values(part, models, depth + 1), *[ODD_VALUES][: depth < 2]) for name, part in wanted.items()}
    mandatory = {name: part for name, part in fields.items() if name in needed}
    optional = {name: part for name, part in fields.items() if name not in needed}
    return st.fixed_dictionaries(mandatory, optional=optional | {"unknown": ODD_VALUES})


HOSTILE_BODIES = st.sampled_from([
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b"\xff\xfe\x00",
    b"[" * NESTING_DEPTH,
    b'{"slip":' * NESTING_DEPTH + b"1" + b"}" * NESTING_DEPTH,
    b'{"a":' + b"9" * 6000 + b"}",
    b'{"prompt": NaN}',
    b'{"prompt": "x", "prompt": 7}',
    b'{"prompt": "' + b"x" * (1 << 20) + b'"}',
    b'{"slip": {"itinerary": [{"step": "nobody"}]}, "prompt": "x"}',
    b'{"slip": {"itinerary": 7, "on_failure": {"step": "../x"}}}',
])  # fmt: skip

SHORT_TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
HEADER_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "atelier-attempt": st.sampled_from([0, -1, 2**62, "NaN", None, [1], {"a": 1}]),
        "atelier-deadline": st.sampled_from(["soon", "", "2999-01-01", 5, "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"]),
        "atelier-tenant": st.sampled_from(["x" * 600, "a\r\nb", 7]),
        "atelier-origin-queue": st.sampled_from(["atelier.nowhere", "x" * 300, "", 7]),
        "atelier-replay": st.sampled_from([-1, "x", 2**40]),
        "atelier-aside": st.sampled_from(["yes", 1, False]),
        "traceparent": st.sampled_from(["", "00-x-y-z", "no\r\ndashes", "-" * 300]),
        "x-delivery-count": st.sampled_from(["many", -5, 10**6]),
        "x-death": st.sampled_from([[], "x", [{"count": "x"}], [7]]),
    },
)
PROPERTY_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "headers": HEADER_VALUES,
        "correlation_id": st.one_of(SHORT_TEXT, st.sampled_from(["j" * 255, "a.b.#", "a\r\nX: 1", "안" * 80])),
        "type": st.one_of(SHORT_TEXT, st.sampled_from(["image.v2", "webhook.v1", "x" * 255])),
        "reply_to": st.sampled_from(["nobody-listens", "amq.rabbitmq.reply-to.x", "x" * 255, "a\r\nb"]),
        "content_encoding": st.sampled_from(["gzip", "x" * 200]),
        "content_type": st.sampled_from(["text/plain", "application/octet-stream", "\r\n"]),
        "app_id": SHORT_TEXT,
    },
)


def encode_json(body: Any) -> bytes:
    return json.dumps(body).encode()


def fuzz_messages(contract: type[BaseModel], count: int) -> list[FuzzMessage]:
    """`count` messages for whoever reads `contract`, the same at each call."""
    schema = contract.model_json_schema()
    body = st.one_of(mutated_objects(schema, schema.get("$defs", {})).map(encode_json), HOSTILE_BODIES)
    made: list[FuzzMessage] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(body=body, properties=PROPERTY_VALUES)
    def make(body: bytes, properties: dict[str, Any]) -> None:
        made.append(FuzzMessage(body, properties))

    make()
    return made
