"""The header schemas of each kind of message: the documented members of `contracts.wire.Header`, and AMQP properties."""

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from contracts import wire
from contracts.broker_names import REPLY_QUEUE_PREFIXES
from contracts.identifiers import ID_RULE
from contracts.wire import Header

FAILURE_HEADERS = frozenset(header for header in Header if header.name.startswith(("ORIGIN", "FIRST", "LAST", "FAULT", "EXCEPTION")))
ATTEMPT_HEADERS = frozenset({Header.ATTEMPT, Header.DETACHED, Header.REPLAY, Header.FORMER_ID})
SCHEMA_BY_TYPE = {"int": {"type": "integer"}, "bool": {"type": "boolean"}, "ISO 8601": {"type": "string", "format": "date-time"}}

AMQP_PROPERTIES: dict[str, dict[str, Any]] = {
    "message_id": {"type": "string", "description": "A message with the id, tenant, job and content of an earlier one is processed once."},
    "correlation_id": {"type": "string", "description": f"The job's id, the same in every message of the job: {ID_RULE}."},
    "type": {"type": "string", "description": "Name and version of the message."},
    "reply_to": {
        "type": "string",
        "description": f"The queue for the reply. Its name begins with one of {', '.join(REPLY_QUEUE_PREFIXES)}.",
    },
    "content_type": {"type": "string", "const": "application/json"},
    "delivery_mode": {"type": "integer", "const": 2, "description": "Persistent."},
    "timestamp": {"type": "integer", "description": "Time of publishing, in seconds since 1970."},
    "app_id": {"type": "string", "description": "The publishing application."},
}
"""AMQP basic properties. They are listed as headers because AsyncAPI has no other place; `x-amqp-property` marks them."""
MESSAGE_KINDS = ("command", "event", "reply", "dead")


def headers_schema(kind: str, message_type: str | None = None) -> dict[str, Any]:
    """The schema of the headers of one message. `kind`: one of MESSAGE_KINDS."""
    shared = {"$ref": f"#/components/schemas/Headers.{kind}"}
    return {"allOf": [shared, {"type": "object", "properties": {"type": {"const": message_type}}}]} if message_type else shared


def shared_header_schemas() -> dict[str, Any]:
    """The schemas that `headers_schema` refers to, by name."""
    properties = {name: schema | {"x-amqp-property": True} for name, schema in AMQP_PROPERTIES.items()}
    return {f"Headers.{kind}": {"type": "object", "properties": properties | atelier_headers(kind)} for kind in MESSAGE_KINDS}


def atelier_headers(kind: str) -> dict[str, Any]:
    return {str(header): schema for header, schema in documented_headers() if header in headers_of_kind(kind)}


def headers_of_kind(kind: str) -> frozenset[Header]:
    headers = frozenset(Header)
    return {"command": headers - FAILURE_HEADERS, "dead": headers}.get(kind, headers - FAILURE_HEADERS - ATTEMPT_HEADERS)


def documented_headers() -> Iterator[tuple[Header, dict[str, Any]]]:
    """Each header with its schema, from the docstring that follows one or more members of `Header`: `type: meaning`."""
    (cls,) = ast.parse(inspect.getsource(wire.Header)).body
    assert isinstance(cls, ast.ClassDef)
    undocumented: list[Header] = []
    for node in cls.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]):
                undocumented.append(Header[name])
            case ast.Expr(value=ast.Constant(value=str(docstring))):
                yield from ((header, header_schema(docstring)) for header in undocumented)
                undocumented = []


def header_schema(docstring: str) -> dict[str, Any]:
    kind, _, meaning = docstring.partition(":")
    return SCHEMA_BY_TYPE.get(kind.strip(" ."), {"type": "string"}) | ({"description": meaning.strip()} if meaning.strip() else {})
