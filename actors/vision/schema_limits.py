"""The longest possible answer of a JSON schema. A schema with an unlimited string or list is rejected."""

import re
from typing import Any

from pydantic import BaseModel

MAX_BYTES_PER_CHAR = 4
MAX_NUMBER_CHARS = 12
LENGTH_SUFFIX = re.compile(r"\{(?:\d+,)?(\d+)\}\$?$")


def max_json_bytes(model: type[BaseModel]) -> int:
    """Bytes of the longest JSON document that satisfies the model, with a space after each comma and colon.

    A tokenizer makes at most one token of a byte, so this limits its tokens, too. Raises ValueError for a schema without limits.
    """
    schema = model.model_json_schema()
    return _max_bytes(schema, schema.get("$defs", {}))


def _max_bytes(schema: dict[str, Any], definitions: dict[str, Any]) -> int:
    if "$ref" in schema:
        return _max_bytes(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return max(_max_bytes(choice, definitions) for choice in schema["anyOf"])
    if "enum" in schema:
        return max(len(str(choice).encode()) for choice in schema["enum"]) + 2
    match schema["type"]:
        case "object":
            fields = schema["properties"].items()
            return 2 + sum(len(name.encode()) + 6 + _max_bytes(field, definitions) for name, field in fields)
        case "array":
            return 2 + _require_limit(schema, "maxItems") * (_max_bytes(schema["items"], definitions) + 2)
        case "string":
            return 2 + MAX_BYTES_PER_CHAR * _max_chars(schema)
        case "boolean":
            return 5
        case "null":
            return 4
        case _:
            return MAX_NUMBER_CHARS


def _require_limit(schema: dict[str, Any], name: str) -> int:
    if name not in schema:
        raise ValueError(f"{schema.get('title', schema)} has no {name}: its answer might never end")
    return int(schema[name])


def _max_chars(schema: dict[str, Any]) -> int:
    """From the repetition count in the pattern. Not from `maxLength`: constrained decoding with it permits control characters."""
    count = LENGTH_SUFFIX.search(schema.get("pattern", ""))
    if not count:
        raise ValueError(f"{schema.get('title', schema)} has no pattern that ends in a count: its answer might never end")
    return int(count[1])
