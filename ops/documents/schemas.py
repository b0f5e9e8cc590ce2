"""`docs/schemas.json`: the JSON Schemas of all contracts, each message by its AMQP type."""

import json
from typing import Any

from ops.asyncapi.schemas import contracts, pool
from ops.asyncapi.staff import speakers

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def exported() -> dict[str, Any]:
    refs, schemas = pool(contracts(speakers()), ref="#/$defs/{model}")
    return {"$schema": DIALECT, "messages": {message: {"$ref": refs[message]} for message in sorted(refs)}, "$defs": schemas}


def schemas() -> str:
    return json.dumps(exported(), indent=1, ensure_ascii=False) + "\n"
