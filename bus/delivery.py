"""A delivery: one message from a queue, its properties and headers parsed once."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Self
from uuid import uuid4

from aio_pika.abc import AbstractIncomingMessage

from bus.amqp import signing
from bus.amqp.header_values import SHORT_TEXT_LIMIT, as_text, read_count, read_id, read_queue_name, read_tenant, read_text, read_time
from bus.amqp.raw_properties import RawProperties
from bus.amqp.tolerant_decoding import decode_properties, encoded_properties, undecodable_reason
from bus.ids import body_id, derived_id, has_secret, public_body_id, public_id
from bus.persistence.entry_id import content_digest, entry_id
from contracts.broker_names import is_reply_queue
from contracts.identifiers import is_identifier
from contracts.wire import Header

CARRIED_PROPERTIES_LIMIT = 90_000
"""Bytes. RabbitMQ takes a frame of 128 kB; the cause of a dead letter may need the rest."""

DEVICE_MILLISECONDS_LIMIT = 30 * 86_400_000

OnMessage = Callable[[AbstractIncomingMessage], Coroutine[Any, Any, None]]
"""The callback of a consumer: processes one message and acknowledges it."""


def find_refused_id(message: AbstractIncomingMessage, headers: Mapping[str, Any]) -> str | None:
    """The first property that holds an id, and breaks the rule of ids. An empty one is none."""
    ids = (
        ("message_id", message.message_id),
        ("correlation_id", message.correlation_id),
        ("reply_to", message.reply_to),
        (Header.TENANT.value, headers.get(Header.TENANT)),
    )
    for name, value in ids:
        if value not in (None, "", b"") and not is_identifier(as_text(value)):
            return name
    return None


@dataclass(frozen=True)
class Origin:
    """Where a message first arrived. A retry is a new message to the broker, so our headers carry the origin."""

    queue: str
    exchange: str
    routing_key: str


def read_original_properties(message: AbstractIncomingMessage, *, of_adapter: bool = False) -> bytes | None:
    """The properties of a message as it was first published, encoded: those that a copy of ours carries in a header, else its own.

    A publisher can write the header too. It is believed only if the message has a valid signature, where messages are signed, and its
    own ids and tenant are those of the carried properties. `of_adapter`: a dead letter of an adapter has the job that was translated.
    """
    headers = message.headers or {}
    carried = headers.get(Header.ORIGINAL_PROPERTIES)
    original = bytes(carried) if isinstance(carried, bytes | bytearray) and Header.ORIGIN_QUEUE in headers else None
    if original is None or signing.find_fault(message) or not _is_copied_from(message, original, of_adapter):
        return encoded_properties(headers)
    return original


def _is_copied_from(message: AbstractIncomingMessage, carried: bytes, of_adapter: bool) -> bool:
    """Whether the message can be our copy of one with these properties. What cannot be decoded has no ids and no tenant for us."""
    tenant = read_text((message.headers or {}).get(Header.TENANT)) or None
    try:
        raw = RawProperties.parse(carried)
    except ValueError:
        return tenant is None
    if read_id(raw.text("message_id")) in (None, message.message_id):
        job_id = read_id(raw.text("correlation_id")) or message.message_id
        if of_adapter or (job_id == message.correlation_id and (read_text(raw.header_text(Header.TENANT)) or None) == tenant):
            return True
    return tenant is None and undecodable_reason(decode_properties(carried).headers) is not None


def carry_original_properties(encoded: bytes | None) -> dict[str, bytearray]:
    """The header of a copy of ours. Properties that fill a frame of their own are not carried: the copy's headers must fit beside them."""
    return {Header.ORIGINAL_PROPERTIES.value: bytearray(encoded)} if encoded and len(encoded) <= CARRIED_PROPERTIES_LIMIT else {}


@dataclass(frozen=True)
class Delivery:
    """A message and its metadata; the body is not parsed. `redelivery_count`: how often it was returned to the queue.

    `former_id`: the id that the message has under the scheme of earlier releases. `refused_reply_to`: a `reply_to` that names no reply
    queue; `reply_to` is None then, so that nothing is published to it. `refused_id`: the property that is no id by the rule.
    `signature_fault`: why its signature is refused, where one is due.
    `undecodable`: why the client library could not decode its properties. None of them is known then, and the ids are new.
    `original_properties`: those of the message as it was first published, encoded; a retry carries them in a header.
    """

    body: bytes
    queue: str
    message_id: str
    job_id: str
    type: str | None = None
    reply_to: str | None = None
    attempt: int = 1
    delivery_tag: int | None = None
    device_milliseconds: int = 0
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
    undecodable: str | None = None
    former_id: str | None = None
    refused_id: str | None = None
    refused_reply_to: str | None = None
    signature_fault: str | None = None
    original_properties: bytes | None = None
    origin: Origin = field(default_factory=lambda: Origin("", "", ""))

    @classmethod
    def from_message(cls, message: AbstractIncomingMessage, queue: str) -> Self:
        headers = message.headers or {}
        undecodable = undecodable_reason(headers)
        given_id = str(uuid4()) if undecodable else read_id(message.message_id)
        message_id = given_id or body_id(queue, message.body)
        reply_to = read_queue_name(message.reply_to)
        return cls(
            body=message.body,
            queue=queue,
            message_id=message_id,
            job_id=read_id(message.correlation_id) or message_id,
            type=read_text(message.type, SHORT_TEXT_LIMIT),
            reply_to=reply_to if reply_to and is_reply_queue(reply_to) else None,
            attempt=read_count(headers.get(Header.ATTEMPT), least=1),
            delivery_tag=message.delivery_tag,
            device_milliseconds=read_count(headers.get(Header.DEVICE_MILLISECONDS), most=DEVICE_MILLISECONDS_LIMIT),
            redelivery_count=read_count(headers.get("x-delivery-count")),
            detached=headers.get(Header.DETACHED) is True,
            deadline=read_time(headers.get(Header.DEADLINE)),
            tenant=read_tenant(headers.get(Header.TENANT)),
            traceparent=read_text(headers.get(Header.TRACEPARENT)),
            tracestate=read_text(headers.get(Header.TRACESTATE)),
            request_id=read_text(headers.get(Header.REQUEST_ID)),
            published_at=read_time(message.timestamp),
            first_failed_at=read_text(headers.get(Header.FIRST_FAILED_AT)),
            replay=read_count(headers.get(Header.REPLAY)),
            undecodable=undecodable,
            former_id=read_id(headers.get(Header.FORMER_ID)) or (None if given_id else public_body_id(queue, message.body)),
            refused_id=find_refused_id(message, headers),
            refused_reply_to=reply_to if reply_to and not is_reply_queue(reply_to) else None,
            signature_fault=signing.find_fault(message),
            original_properties=read_original_properties(message),
            origin=Origin(
                read_text(headers.get(Header.ORIGIN_QUEUE)) or queue,
                read_text(headers.get(Header.ORIGIN_EXCHANGE)) or read_text(message.exchange) or "",
                read_text(headers.get(Header.ORIGIN_ROUTING_KEY)) or read_text(message.routing_key) or "",
            ),
        )

    @cached_property
    def entry_id(self) -> str:
        """The id of its inbox entry, equal for every redelivery, retry and replay."""
        content = content_digest(self.body, detached=self.detached)
        return entry_id(self.message_id, self.former_id, self.tenant, self.job_id, content)

    def derive_id(self, *parts: str | int) -> tuple[str, dict[str, str]]:
        """The id of a message that this one causes, and the header with its former id.

        Messages with one id and other content cause messages with other ids.
        """
        former = public_id(self.former_id or self.message_id, *parts)
        if not has_secret():
            return public_id(self.message_id, *parts), {Header.FORMER_ID.value: former} if self.former_id else {}
        return derived_id(self.entry_id, *parts), {Header.FORMER_ID.value: former}

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
