"""A delivery: one message from a queue, its properties and headers parsed once."""

import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from aio_pika.abc import AbstractIncomingMessage

from bus.ids import body_id
from contracts.wire import Header

OnMessage = Callable[[AbstractIncomingMessage], Coroutine[Any, Any, None]]
"""The callback of a consumer: processes one message and acknowledges it."""


@dataclass(frozen=True)
class Origin:
    """Where a message first arrived. A retry is a new message to the broker, so our headers carry the origin."""

    queue: str
    exchange: str
    routing_key: str


@dataclass(frozen=True)
class Delivery:
    """A message and its metadata; the body is not parsed. `redelivery_count`: how often it was returned to the queue."""

    body: bytes
    queue: str
    message_id: str
    job_id: str
    type: str | None = None
    reply_to: str | None = None
    attempt: int = 1
    redelivery_count: int = 0
    detached: bool = False
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
    def from_message(cls, message: AbstractIncomingMessage, queue: str) -> Self:
        headers = message.headers or {}
        message_id = message.message_id or body_id(queue, message.body)
        return cls(
            body=message.body,
            queue=queue,
            message_id=message_id,
            job_id=message.correlation_id or message_id,
            type=message.type,
            reply_to=message.reply_to,
            attempt=max(1, _to_int(headers.get(Header.ATTEMPT), 1)),
            redelivery_count=_to_int(headers.get("x-delivery-count"), 0),
            detached=headers.get(Header.DETACHED) is True,
            deadline=_to_datetime(headers.get(Header.DEADLINE)),
            tenant=_to_text(headers.get(Header.TENANT)),
            traceparent=_to_text(headers.get(Header.TRACEPARENT)),
            tracestate=_to_text(headers.get(Header.TRACESTATE)),
            request_id=_to_text(headers.get(Header.REQUEST_ID)),
            published_at=message.timestamp.astimezone(UTC) if message.timestamp else None,
            first_failed_at=_to_text(headers.get(Header.FIRST_FAILED_AT)),
            replay=_to_int(headers.get(Header.REPLAY), 0),
            origin=Origin(
                _to_text(headers.get(Header.ORIGIN_QUEUE)) or queue,
                _to_text(headers.get(Header.ORIGIN_EXCHANGE)) or message.exchange or "",
                _to_text(headers.get(Header.ORIGIN_ROUTING_KEY)) or message.routing_key or "",
            ),
        )

    @property
    def propagated_headers(self) -> dict[str, Any]:
        """The headers that every message caused by this one carries."""
        headers = {
            Header.DEADLINE: self.deadline.isoformat() if self.deadline else None,
            Header.TENANT: self.tenant,
            Header.TRACEPARENT: self.traceparent,
            Header.TRACESTATE: self.tracestate,
            Header.REQUEST_ID: self.request_id,
        }
        return {str(name): value for name, value in headers.items() if value is not None}

    @property
    def trace_context(self) -> dict[str, str]:
        """The W3C trace context headers that are set."""
        headers = {Header.TRACEPARENT.value: self.traceparent, Header.TRACESTATE.value: self.tracestate}
        return {name: value for name, value in headers.items() if value}

    @property
    def log_fields(self) -> dict[str, str]:
        """Fields of every log entry about this delivery; they identify one request in the logs of all processes."""
        parts = (self.traceparent or "").split("-")
        fields = {"request_id": self.request_id, "trace_id": parts[1] if len(parts) > 1 else None}
        return {name: value for name, value in fields.items() if value}


def _to_int(value: Any, default: int) -> int:
    """A header may hold a value of any type: one that is no number counts as absent."""
    with contextlib.suppress(TypeError, ValueError):
        return int(value)
    return default


def _to_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value[:512] if isinstance(value, str) else None


def _to_datetime(value: Any) -> datetime | None:
    with contextlib.suppress(TypeError, ValueError):
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None
