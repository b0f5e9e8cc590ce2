"""The headers of each kind of message, from the documented members of `contracts.wire.Header`, beside the AMQP properties that matter."""

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from contracts import wire
from contracts.wire import Header

FAILURE_HEADERS = frozenset(header for header in Header if header.name.startswith(("ORIGIN", "FIRST", "LAST", "FAULT", "EXCEPTION")))
ATTEMPT_HEADERS = frozenset({Header.ATTEMPT, Header.DETACHED, Header.REPLAY})
SCHEMA_BY_TYPE = {"int": {"type": "integer"}, "bool": {"type": "boolean"}, "ISO 8601": {"type": "string", "format": "date-time"}}

AMQP_PROPERTIES: dict[str, dict[str, Any]] = {
    "message_id": {"type": "string", "description": "The same id is the same message: done once."},
    "correlation_id": {"type": "string", "description": "The job's id, the same in everything that follows."},
    "type": {"type": "string", "description": "Name and version of the message."},
    "reply_to": {"type": "string", "description": "The queue that awaits the reply; none: nobody does."},
    "content_type": {"type": "string", "const": "application/json"},
    "delivery_mode": {"type": "integer", "const": 2, "description": "Persistent."},
    "timestamp": {"type": "integer", "description": "Seconds since 1970 at which it was published."},
    "app_id": {"type": "string", "description": "Who published it."},
}
"""AMQP basic properties. They stand among the headers because AsyncAPI knows no other place; `x-amqp-property` marks them."""


MESSAGE_KINDS = ("command", "event", "reply", "dead")


def headers_schema(kind: str, message_type: str | None = None) -> dict[str, Any]:
    """What the headers of one message say."""
    of_kind = {"$ref": f"#/components/schemas/Headers.{kind}"}
    return {"allOf": [of_kind, {"type": "object", "properties": {"type": {"const": message_type}}}]} if message_type else of_kind


def shared_header_schemas() -> dict[str, Any]:
    """The headers' schemas of commands, events, replies and dead letters."""
    properties = {name: schema | {"x-amqp-property": True} for name, schema in AMQP_PROPERTIES.items()}
    return {f"Headers.{kind}": {"type": "object", "properties": properties | atelier_headers(kind)} for kind in MESSAGE_KINDS}


def atelier_headers(kind: str) -> dict[str, Any]:
    return {str(header): schema for header, schema in documented_headers() if header in headers_of_kind(kind)}


def headers_of_kind(kind: str) -> frozenset[Header]:
    every = frozenset(Header)
    return {"command": every - FAILURE_HEADERS, "dead": every}.get(kind, every - FAILURE_HEADERS - ATTEMPT_HEADERS)


def documented_headers() -> Iterator[tuple[Header, dict[str, Any]]]:
    """A string below one or more members says their type and meaning."""
    (cls,) = ast.parse(inspect.getsource(wire.Header)).body
    assert isinstance(cls, ast.ClassDef)
    waiting: list[Header] = []
    for node in cls.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]):
                waiting.append(Header[name])
            case ast.Expr(value=ast.Constant(value=str(said))):
                yield from ((header, header_schema(said)) for header in waiting)
                waiting = []


def header_schema(docstring: str) -> dict[str, Any]:
    kind, _, meaning = docstring.partition(":")
    return SCHEMA_BY_TYPE.get(kind.strip(" ."), {"type": "string"}) | ({"description": meaning.strip()} if meaning.strip() else {})
