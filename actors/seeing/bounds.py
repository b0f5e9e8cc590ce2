"""How long an answer can get, read from its schema. A schema without an end is refused: whoever asks must bound what is said."""

import re
from typing import Any

from pydantic import BaseModel

BYTES_PER_LETTER = 4
LONGEST_NUMBER = 12
COUNTED = re.compile(r"\{(?:\d+,)?(\d+)\}\$?$")


def longest_bytes(model: type[BaseModel]) -> int:
    """Bytes of the longest JSON document that satisfies the model, with a blank after each comma and colon.

    A tokenizer makes at most one token of a byte, so this bounds an answer's tokens too.
    """
    schema = model.model_json_schema()
    return _longest(schema, schema.get("$defs", {}))


def _longest(schema: dict[str, Any], named: dict[str, Any]) -> int:
    if "$ref" in schema:
        return _longest(named[schema["$ref"].rpartition("/")[2]], named)
    if "anyOf" in schema:
        return max(_longest(choice, named) for choice in schema["anyOf"])
    if "enum" in schema:
        return max(len(str(choice).encode()) for choice in schema["enum"]) + 2
    match schema["type"]:
        case "object":
            fields = schema["properties"].items()
            return 2 + sum(len(name.encode()) + 6 + _longest(field, named) for name, field in fields)
        case "array":
            return 2 + _limit(schema, "maxItems") * (_longest(schema["items"], named) + 2)
        case "string":
            return 2 + BYTES_PER_LETTER * _letters(schema)
        case "boolean":
            return 5
        case "null":
            return 4
        case _:
            return LONGEST_NUMBER


def _limit(schema: dict[str, Any], name: str) -> int:
    if name not in schema:
        raise ValueError(f"{schema.get('title', schema)} has no {name}: its answer might never end")
    return int(schema[name])


def _letters(schema: dict[str, Any]) -> int:
    """From the pattern's count. `maxLength` would do for us, but decoding by it lets control characters through."""
    counted = COUNTED.search(schema.get("pattern", ""))
    if not counted:
        raise ValueError(f"{schema.get('title', schema)} has no pattern that ends in a count: its answer might never end")
    return int(counted[1])
