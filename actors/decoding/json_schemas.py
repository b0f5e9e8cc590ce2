"""Checks a JSON schema from outside, and answers against it, inside a decoder process: its patterns may take any time."""

import json
import re
from collections.abc import Iterator
from re import _parser as regex_parser  # type: ignore[attr-defined]
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from actors.decoding.protocol import Refused

MAX_REASON_CHARS = 300
MAX_PATTERN_SIZE = 1000
"""Of all patterns of a schema, with their repetitions written out: the time to compile one grows with its square."""
VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords with values, which are no schemas."""
SCHEMA_MAPS = frozenset({"properties", "$defs", "definitions"})


def check(data: bytes, schema: dict[str, Any], check: bool = False) -> dict[str, Any]:
    """Whether `schema` is one; with `check` whether the JSON in `data` satisfies it: `reason` is None, or says why not. Raises Refused."""
    try:
        Draft202012Validator.check_schema(schema)
        size = sum(pattern_size(pattern) for pattern in find_patterns(schema))
        if size > MAX_PATTERN_SIZE:
            reason = f"its patterns describe {size} characters with their repetitions, more than {MAX_PATTERN_SIZE}"
            raise Refused("schema-refused", f"The JSON schema is not accepted: {reason}.")
        if check:
            Draft202012Validator(schema, registry=Registry()).validate(json.loads(data))
    except SchemaError as error:
        raise Refused("schema-refused", f"The JSON schema is not accepted: {error.message[:MAX_REASON_CHARS]}.") from error
    except (Unresolvable, re.error) as error:
        raise Refused("schema-refused", f"The JSON schema is not accepted: {str(error)[:MAX_REASON_CHARS]}.") from error
    except ValidationError as error:
        return {"reason": f"{error.json_path}: {error.message[:MAX_REASON_CHARS]}"}
    return {"reason": None}


def find_patterns(schema: Any) -> Iterator[str]:
    """The patterns of a schema and of those inside it; values such as those of `enum` have none."""
    if isinstance(schema, list):
        for part in schema:
            yield from find_patterns(part)
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name == "pattern" and isinstance(value, str):
            yield value
        elif name in SCHEMA_MAPS and isinstance(value, dict):
            yield from find_patterns(list(value.values()))
        elif name not in VALUES:
            yield from find_patterns(value)


def pattern_size(pattern: str) -> int:
    """The parts of a regular expression when repetitions are written out. Raises re.error for one that is none."""
    re.compile(pattern)
    return expanded_size(regex_parser.parse(pattern))


def expanded_size(part: Any) -> int:
    """Of a parsed expression, or of any part of one; nested repetitions multiply."""
    if isinstance(part, regex_parser.SubPattern):
        return sum(expanded_size(entry) for entry in part.data)
    if not isinstance(part, tuple | list):
        return 0
    if len(part) == 2 and part[0] in REPEATS:
        least, most, body = part[1]
        return max(1, int(least if most is regex_parser.MAXREPEAT else most)) * max(1, expanded_size(body))
    return max(1, sum(expanded_size(entry) for entry in part if isinstance(entry, tuple | list | regex_parser.SubPattern)))


REPEATS = (regex_parser.MAX_REPEAT, regex_parser.MIN_REPEAT, regex_parser.POSSESSIVE_REPEAT)
