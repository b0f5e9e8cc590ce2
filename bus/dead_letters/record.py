"""A dead letter as read from its queue: the cause from our headers, or from the broker's `x-death` when the publisher is foreign."""

import contextlib
import hashlib
import math
import re
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Self
from uuid import uuid4

from aio_pika.abc import AbstractIncomingMessage

from bus.amqp.header_values import read_id, read_time
from bus.amqp.tolerant_decoding import encoded_properties, undecodable_reason
from bus.delivery import read_original_properties
from bus.ids import public_body_id
from contracts import broker_names
from contracts.wire import Header

DEAD_LETTER_QUEUE_PREFIX = broker_names.dead_letter_queue("")
OUR_QUEUES = (broker_names.work_queue(""), broker_names.IMAGE_GENERATION_QUEUE)
FRAME_PATTERN = re.compile(r'^ *File "(?P<file>[^"\n]+)", line \d+, in (?P<function>.+)$', re.MULTILINE)
FINGERPRINT_FRAMES = 8
"""Innermost frames that count. The outer ones are the same for every failure, and may be cut off."""
MAX_HEADER_DEPTH = 16
MAX_HEADER_TEXT = 100_000
"""Characters."""


@dataclass(frozen=True)
class DeadLetterRecord:
    """One dead letter. `id` identifies a message in a dead-letter queue, `failure_id` one failure of it; both survive a redelivery.

    `headers` are for reading: what JSON cannot hold is changed in them. `properties`: all properties as they were encoded; None for those
    of an earlier release. In a dead letter of ours they are the properties of the message that failed.
    """

    id: str
    failure_id: str
    dead_queue: str
    target: str | None
    step: str
    message_id: str
    job_id: str
    tenant: str | None
    type: str | None
    content_type: str | None
    content_encoding: str | None
    code: str
    message: str
    exception_type: str | None
    stack: str
    attempts: int
    origin_exchange: str | None
    origin_key: str | None
    first_failed_at: datetime
    last_failed_at: datetime
    headers: dict[str, Any]
    body: bytes
    properties: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of its body and properties."""
        return len(self.body) + len(self.properties or b"")

    @property
    def fingerprint(self) -> tuple[str, ...]:
        return stack_fingerprint(self.stack)

    @property
    def group_id(self) -> str:
        return compute_group_id(self.step, self.code, self.exception_type, self.fingerprint)

    @classmethod
    def from_message(cls, message: AbstractIncomingMessage, dead_queue: str, now: datetime) -> Self:
        """Read a message of the queue `dead_queue`. Never raises: a field that is missing or malformed has a fallback."""
        of_adapter = dead_queue == broker_names.dead_letter_queue(broker_names.IMAGE_GENERATION_QUEUE)
        ours = is_ours(dead_queue)
        properties = read_original_properties(message, of_adapter=of_adapter) if ours else encoded_properties(message.headers)
        headers = {sanitize_text(name): to_json_value(value) for name, value in (message.headers or {}).items()}
        undecodable = undecodable_reason(message.headers)
        death = first_death_entry(headers)
        message_id = read_id(message.message_id) or public_body_id(dead_queue, message.body)
        target = source_queue(dead_queue) or _foreign_target(headers, death)
        first = _timestamp_header(headers, Header.FIRST_FAILED_AT)
        last = _timestamp_header(headers, Header.LAST_FAILED_AT) or _death_time(death)
        stamps = (first, last, headers.get(Header.REPLAY.value), death.get("count"), death.get("time"))
        return cls(
            id=_digest(dead_queue, message_id),
            failure_id=_digest(dead_queue, message_id, *map(str, stamps), hashlib.sha256(message.body).hexdigest()),
            dead_queue=dead_queue,
            target=target,
            step=step_of(dead_queue, target),
            message_id=message_id,
            job_id=read_id(message.correlation_id) or message_id,
            tenant=_text_field(headers, Header.TENANT),
            type=message.type and sanitize_text(message.type),
            content_type=message.content_type and sanitize_text(message.content_type),
            content_encoding=message.content_encoding and sanitize_text(message.content_encoding),
            code="undecodable-properties" if undecodable else _text_field(headers, Header.FAULT_CODE) or _death_code(death),
            message=undecodable or _text_field(headers, Header.FAULT_MESSAGE) or _death_message(death),
            exception_type=_text_field(headers, Header.EXCEPTION_TYPE),
            stack=_text_field(headers, Header.EXCEPTION_STACK) or "",
            attempts=_non_negative_int(headers.get(Header.ATTEMPT.value)) or _non_negative_int(death.get("count")) or 1,
            origin_exchange=_text_field(headers, Header.ORIGIN_EXCHANGE) or _text_field(death, "exchange"),
            origin_key=_text_field(headers, Header.ORIGIN_ROUTING_KEY) or _first_item(death.get("routing-keys")),
            first_failed_at=first or last or now,
            last_failed_at=last or first or now,
            headers={name: value for name, value in headers.items() if name != Header.ORIGINAL_PROPERTIES},
            body=message.body,
            properties=properties,
        )

    @classmethod
    def raw(cls, body: bytes, dead_queue: str, now: datetime, reason: str) -> Self:
        """The dead letter of a message of which only the body can be read or stored. `reason`: why."""
        message_id, target = str(uuid4()), source_queue(dead_queue)
        return cls(
            id=_digest(dead_queue, message_id),
            failure_id=_digest(dead_queue, message_id, "raw"),
            dead_queue=dead_queue,
            target=target,
            step=step_of(dead_queue, target),
            message_id=message_id,
            job_id=message_id,
            tenant=None,
            type=None,
            content_type=None,
            content_encoding=None,
            code="dead-letter-unstorable",
            message=sanitize_text(reason)[:2000],
            exception_type=None,
            stack="",
            attempts=1,
            origin_exchange=None,
            origin_key=None,
            first_failed_at=now,
            last_failed_at=now,
            headers={},
            body=body,
        )


def is_ours(dead_queue: str) -> bool:
    return dead_queue.startswith(DEAD_LETTER_QUEUE_PREFIX)


def source_queue(dead_queue: str) -> str | None:
    """The queue whose dead letters are in `dead_queue`, by its name alone; None when the name is not one of ours."""
    if not is_ours(dead_queue):
        return None
    name = dead_queue.removeprefix(DEAD_LETTER_QUEUE_PREFIX)
    return name if name == broker_names.IMAGE_GENERATION_QUEUE else broker_names.work_queue(name)


def step_of(dead_queue: str, target: str | None) -> str:
    """The step of one of our queues, or the name of a foreign one."""
    if is_ours(dead_queue):
        return dead_queue.removeprefix(DEAD_LETTER_QUEUE_PREFIX)
    return (target or dead_queue).removeprefix(broker_names.work_queue(""))


def first_death_entry(headers: dict[str, Any]) -> dict[str, Any]:
    """The `x-death` entry of the queue in which the message failed; empty when there is none."""
    entries = _death_entries(headers)
    first = headers.get("x-first-death-queue")
    return next((entry for entry in entries if entry.get("queue") == first), entries[-1] if entries else {})


def _death_entries(headers: dict[str, Any]) -> list[dict[str, Any]]:
    """The newest first."""
    deaths = headers.get("x-death")
    return [entry for entry in deaths if isinstance(entry, dict)] if isinstance(deaths, list) else []


def _first_death_queue(headers: dict[str, Any], death_entry: dict[str, Any]) -> str | None:
    return _text_field(headers, "x-first-death-queue") or _text_field(death_entry, "queue")


def _foreign_target(headers: dict[str, Any], death_entry: dict[str, Any]) -> str | None:
    """The queue in which the message failed first, by the broker's headers.

    A publisher can write them before the broker does, but not the newest entry of `x-death`. One of our queues must be in that one.
    """
    queue, newest = _first_death_queue(headers, death_entry), _text_field(next(iter(_death_entries(headers)), {}), "queue")
    claimed_ours = queue is not None and (queue.startswith(OUR_QUEUES) or broker_names.is_reply_queue(queue))
    return newest if claimed_ours else queue


def _death_code(death_entry: dict[str, Any]) -> str:
    """RabbitMQ gives four reasons: rejected, expired, maxlen, delivery_limit."""
    reason = _text_field(death_entry, "reason")
    return f"broker-{reason.replace('_', '-')}" if reason else "unknown"


def _death_message(death_entry: dict[str, Any]) -> str:
    return f"The broker dead-lettered it ({death_entry['reason']}) from {death_entry.get('queue')!r}." if death_entry.get("reason") else ""


def _text_field(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(str(name))
    return value or None if isinstance(value, str) else None


def _first_item(value: Any) -> str | None:
    return str(value[0]) if isinstance(value, list) and value else None


def _non_negative_int(value: Any) -> int:
    with contextlib.suppress(TypeError, ValueError):
        return min(max(0, int(value)), 2**31 - 1)
    return 0


def _timestamp_header(headers: dict[str, Any], name: str) -> datetime | None:
    return read_time(_text_field(headers, name))


def _death_time(death_entry: dict[str, Any]) -> datetime | None:
    with contextlib.suppress(ValueError, OverflowError, OSError):
        match death_entry.get("time"):
            case str() as text:
                return read_time(text)
            case int() | float() as seconds:
                return read_time(datetime.fromtimestamp(seconds, UTC))
    return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def stack_fingerprint(stack: str) -> tuple[str, ...]:
    """`package/file.py:function` of the innermost frames, the outermost of them first."""
    frames = deque(FRAME_PATTERN.finditer(stack[-MAX_HEADER_TEXT:]), FINGERPRINT_FRAMES)
    return tuple(f"{'/'.join(PurePath(frame['file']).parts[-2:])}:{frame['function'].rstrip(' ') or ' '}" for frame in frames)


def compute_group_id(step: str, code: str, exception_type: str | None, fingerprint: tuple[str, ...]) -> str:
    """The id of a cause: failures with the same step, code, exception type and stack fingerprint share it."""
    return hashlib.sha256("\0".join([step, code, exception_type or "", *fingerprint]).encode()).hexdigest()[:12]


def to_json_value(value: Any, depth: int = 0) -> Any:
    """A header's value as JSON that Postgres accepts. Never raises: a letter is stored whatever its publisher put into the headers."""
    match value:
        case None | bool() | int():
            return value
        case float() | Decimal():
            return float(value) if math.isfinite(value) else str(value)
        case datetime():
            return as_utc(value).isoformat()
        case dict() if depth < MAX_HEADER_DEPTH:
            return {sanitize_text(str(name)): to_json_value(item, depth + 1) for name, item in value.items()}
        case list() | tuple() if depth < MAX_HEADER_DEPTH:
            return [to_json_value(item, depth + 1) for item in value]
        case _:
            return sanitize_text(value)


def sanitize_text(value: Any) -> str:
    """Text that Postgres accepts: no NUL, no lone surrogate, at most MAX_HEADER_TEXT characters."""
    text = value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)
    return text[:MAX_HEADER_TEXT].replace("\0", "\ufffd").encode(errors="replace").decode()


def as_utc(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)
