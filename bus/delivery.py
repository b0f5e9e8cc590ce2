"""A delivery: one message as it came out of a queue, its properties and headers read once."""

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from aio_pika.abc import AbstractIncomingMessage

from bus.ids import body_id
from contracts.wire import Header


@dataclass(frozen=True)
class Origin:
    """Where a message first came in. After a retry the broker no longer knows, so it travels in our headers."""

    queue: str
    exchange: str
    routing_key: str


@dataclass(frozen=True)
class Delivery:
    """Everything about a message but what its body means. `returns` counts how often the broker had to take it back."""

    body: bytes
    queue: str
    message_id: str
    job_id: str
    type: str | None = None
    reply_to: str | None = None
    attempt: int = 1
    returns: int = 0
    aside: bool = False
    deadline: datetime | None = None
    tenant: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    request_id: str | None = None
    published_at: datetime | None = None
    first_failed_at: str | None = None
    replay: int = 0
    origin: Origin = field(default_factory=lambda: Origin("", "", ""))

    @classmethod
    def of(cls, raw: AbstractIncomingMessage, queue: str) -> Self:
        headers = raw.headers or {}
        message_id = raw.message_id or body_id(queue, raw.body)
        return cls(
            body=raw.body,
            queue=queue,
            message_id=message_id,
            job_id=raw.correlation_id or message_id,
            type=raw.type,
            reply_to=raw.reply_to,
            attempt=max(1, _integer(headers.get(Header.ATTEMPT), 1)),
            returns=_integer(headers.get("x-delivery-count"), 0),
            aside=headers.get(Header.ASIDE) is True,
            deadline=_moment(headers.get(Header.DEADLINE)),
            tenant=_text(headers.get(Header.TENANT)),
            traceparent=_text(headers.get(Header.TRACEPARENT)),
            tracestate=_text(headers.get(Header.TRACESTATE)),
            request_id=_text(headers.get(Header.REQUEST_ID)),
            published_at=raw.timestamp.astimezone(UTC) if raw.timestamp else None,
            first_failed_at=_text(headers.get(Header.FIRST_FAILED)),
            replay=_integer(headers.get(Header.REPLAY), 0),
            origin=Origin(
                _text(headers.get(Header.ORIGIN_QUEUE)) or queue,
                _text(headers.get(Header.ORIGIN_EXCHANGE)) or raw.exchange or "",
                _text(headers.get(Header.ORIGIN_KEY)) or raw.routing_key or "",
            ),
        )

    @property
    def travelling_headers(self) -> dict[str, Any]:
        """What goes along with whatever follows from this message."""
        headers = {
            Header.DEADLINE: self.deadline.isoformat() if self.deadline else None,
            Header.TENANT: self.tenant,
            Header.TRACEPARENT: self.traceparent,
            Header.TRACESTATE: self.tracestate,
            Header.REQUEST_ID: self.request_id,
        }
        return {str(name): value for name, value in headers.items() if value is not None}

    @property
    def trace(self) -> dict[str, str]:
        """W3C trace context, as far as there is any."""
        headers = {Header.TRACEPARENT.value: self.traceparent, Header.TRACESTATE.value: self.tracestate}
        return {name: value for name, value in headers.items() if value}

    @property
    def named(self) -> dict[str, str]:
        """What every log line about this delivery says, so that one request is found in the logs of all processes."""
        names = {"request_id": self.request_id, "trace_id": self.traceparent.split("-")[1:2] if self.traceparent else None}
        return {name: value if isinstance(value, str) else value[0] for name, value in names.items() if value}


def _integer(value: Any, default: int) -> int:
    """A header may hold anything: a stranger's nonsense counts as absent."""
    with contextlib.suppress(TypeError, ValueError):
        return int(value)
    return default


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value[:512] if isinstance(value, str) else None


def _moment(value: Any) -> datetime | None:
    with contextlib.suppress(TypeError, ValueError):
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None
