"""The headers of each kind of message, from the documented members of `contracts.wire.Header`, beside the AMQP properties that matter."""

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from contracts import wire
from contracts.wire import Header

OF_A_FAILURE = frozenset(header for header in Header if header.name.startswith(("ORIGIN", "FIRST", "LAST", "FAULT", "EXCEPTION")))
OF_A_RUN = frozenset({Header.ATTEMPT, Header.ASIDE, Header.REPLAY})
TYPES = {"int": {"type": "integer"}, "bool": {"type": "boolean"}, "ISO 8601": {"type": "string", "format": "date-time"}}

PROPERTIES: dict[str, dict[str, Any]] = {
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


KINDS = ("command", "event", "reply", "dead")


def headers(kind: str, message_type: str | None = None) -> dict[str, Any]:
    """What the headers of one message say."""
    of_kind = {"$ref": f"#/components/schemas/Headers.{kind}"}
    return {"allOf": [of_kind, {"type": "object", "properties": {"type": {"const": message_type}}}]} if message_type else of_kind


def shared() -> dict[str, Any]:
    """The headers' schemas of commands, events, replies and dead letters."""
    properties = {name: schema | {"x-amqp-property": True} for name, schema in PROPERTIES.items()}
    return {f"Headers.{kind}": {"type": "object", "properties": properties | ours(kind)} for kind in KINDS}


def ours(kind: str) -> dict[str, Any]:
    return {str(header): schema for header, schema in described() if header in travelling(kind)}


def travelling(kind: str) -> frozenset[Header]:
    every = frozenset(Header)
    return {"command": every - OF_A_FAILURE, "dead": every}.get(kind, every - OF_A_FAILURE - OF_A_RUN)


def described() -> Iterator[tuple[Header, dict[str, Any]]]:
    """A string below one or more members says their type and meaning."""
    (cls,) = ast.parse(inspect.getsource(wire.Header)).body
    assert isinstance(cls, ast.ClassDef)
    waiting: list[Header] = []
    for node in cls.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]):
                waiting.append(Header[name])
            case ast.Expr(value=ast.Constant(value=str(said))):
                yield from ((header, schema(said)) for header in waiting)
                waiting = []


def schema(said: str) -> dict[str, Any]:
    kind, _, meaning = said.partition(":")
    return TYPES.get(kind.strip(" ."), {"type": "string"}) | ({"description": meaning.strip()} if meaning.strip() else {})
