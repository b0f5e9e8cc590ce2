"""Checks a JSON schema from outside, and answers against it, inside a decoder process: its patterns may take any time."""

import json
import re
from typing import Any

from actors.decoding.protocol import Refused

MAX_REASON_CHARS = 300


def check(data: bytes, schema: dict[str, Any], check: bool = False) -> dict[str, Any]:
    """Whether `schema` is one; with `check` whether the JSON in `data` satisfies it: `reason` is None, or says why not. Raises Refused."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError, ValidationError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        Draft202012Validator.check_schema(schema)
        compile_patterns(schema)
        if check:
            Draft202012Validator(schema, registry=Registry()).validate(json.loads(data))
    except SchemaError as error:
        raise Refused("schema-refused", f"The JSON schema is not accepted: {error.message[:MAX_REASON_CHARS]}.") from error
    except (Unresolvable, re.error) as error:
        raise Refused("schema-refused", f"The JSON schema is not accepted: {str(error)[:MAX_REASON_CHARS]}.") from error
    except ValidationError as error:
        return {"reason": f"{error.json_path}: {error.message[:MAX_REASON_CHARS]}"}
    return {"reason": None}


def compile_patterns(schema: Any) -> None:
    """Raises re.error for a pattern that is none."""
    if isinstance(schema, dict):
        if isinstance(pattern := schema.get("pattern"), str):
            re.compile(pattern)
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            compile_patterns(part)
