"""A dead letter as it came out of its queue: ours, with its cause in our headers, or a stranger's, with the broker's `x-death` alone."""

import contextlib
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from aio_pika.abc import AbstractIncomingMessage

from bus.dead_letters.headers import clean, moment, plain
from bus.dead_letters.shape import group_of, shape_of
from bus.ids import body_id
from contracts import channels
from contracts.wire import Header

DEAD_PREFIX = channels.dead_queue("")


@dataclass(frozen=True)
class Buried:
    """`failure_id` is the same for one failure however often its letter is read; `id` for one message in one queue of dead letters."""

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

    @property
    def shape(self) -> tuple[str, ...]:
        return shape_of(self.stack)

    @property
    def group_id(self) -> str:
        return group_of(self.step, self.code, self.exception_type, self.shape)

    @classmethod
    def of(cls, raw: AbstractIncomingMessage, dead_queue: str, now: datetime) -> Self:
        headers = {clean(name): plain(value) for name, value in (raw.headers or {}).items()}
        death = death_of(headers)
        message_id = clean(raw.message_id or body_id(dead_queue, raw.body))
        target = _text(headers, Header.ORIGIN_QUEUE) or _foreign_queue(headers, death) or failing_queue(dead_queue)
        first, last = _moment(headers, Header.FIRST_FAILED), _moment(headers, Header.LAST_FAILED) or _when(death)
        stamps = [
            first,
            last,
            headers.get(Header.REPLAY.value),
            death.get("count"),
            death.get("time"),
            hashlib.sha256(raw.body).hexdigest(),
        ]
        return cls(
            id=_digest(dead_queue, message_id),
            failure_id=_digest(dead_queue, message_id, *map(str, stamps)),
            dead_queue=dead_queue,
            target=target,
            step=step_of(dead_queue, target),
            message_id=message_id,
            job_id=clean(raw.correlation_id or message_id),
            tenant=_text(headers, Header.TENANT),
            type=raw.type and clean(raw.type),
            content_type=raw.content_type and clean(raw.content_type),
            content_encoding=raw.content_encoding and clean(raw.content_encoding),
            code=_text(headers, Header.FAULT_CODE) or _code(death),
            message=_text(headers, Header.FAULT_MESSAGE) or _told(death),
            exception_type=_text(headers, Header.EXCEPTION_TYPE),
            stack=_text(headers, Header.EXCEPTION_STACK) or "",
            attempts=_count(headers.get(Header.ATTEMPT.value)) or _count(death.get("count")) or 1,
            origin_exchange=_text(headers, Header.ORIGIN_EXCHANGE) or _text(death, "exchange"),
            origin_key=_text(headers, Header.ORIGIN_KEY) or _first(death.get("routing-keys")),
            first_failed_at=first or last or now,
            last_failed_at=last or first or now,
            headers=headers,
            body=raw.body,
        )


def failing_queue(dead_queue: str) -> str | None:
    """The queue whose dead letters lie in `dead_queue`, when the name tells it."""
    name = dead_queue.removeprefix(DEAD_PREFIX)
    if name == dead_queue:
        return None
    return name if name == channels.IMAGE_GENERATION else channels.work_queue(name)


def step_of(dead_queue: str, target: str | None) -> str:
    if dead_queue.startswith(DEAD_PREFIX):
        return dead_queue.removeprefix(DEAD_PREFIX)
    return (target or dead_queue).removeprefix(channels.work_queue(""))


def death_of(headers: dict[str, Any]) -> dict[str, Any]:
    """The broker's own record of the death in the queue that failed; empty when there is none."""
    deaths = headers.get("x-death")
    entries = [entry for entry in deaths if isinstance(entry, dict)] if isinstance(deaths, list) else []
    first = headers.get("x-first-death-queue")
    return next((entry for entry in entries if entry.get("queue") == first), entries[-1] if entries else {})


def _foreign_queue(headers: dict[str, Any], death: dict[str, Any]) -> str | None:
    return _text(headers, "x-first-death-queue") or _text(death, "queue")


def _code(death: dict[str, Any]) -> str:
    """The broker knows four words: rejected, expired, maxlen, delivery_limit."""
    reason = _text(death, "reason")
    return f"broker-{reason.replace('_', '-')}" if reason else "unknown"


def _told(death: dict[str, Any]) -> str:
    return f"The broker dead-lettered it ({death['reason']}) from {death.get('queue')!r}." if death.get("reason") else ""


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(str(name))
    return value or None if isinstance(value, str) else None


def _first(value: Any) -> str | None:
    return str(value[0]) if isinstance(value, list) and value else None


def _count(value: Any) -> int:
    with contextlib.suppress(TypeError, ValueError):
        return min(max(0, int(value)), 2**31 - 1)
    return 0


def _moment(headers: dict[str, Any], name: str) -> datetime | None:
    with contextlib.suppress(ValueError):
        return moment(datetime.fromisoformat(_text(headers, name) or ""))
    return None


def _when(death: dict[str, Any]) -> datetime | None:
    with contextlib.suppress(ValueError, OverflowError, OSError):
        match death.get("time"):
            case str() as written:
                return moment(datetime.fromisoformat(written))
            case int() | float() as seconds:
                return datetime.fromtimestamp(seconds, UTC)
    return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
