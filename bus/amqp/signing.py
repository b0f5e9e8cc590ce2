"""The signature of our own messages: an HMAC-SHA256 in a header, with ATELIER_SIGN_MESSAGES=on; off by default.

It covers the routing key, the properties that identify the message, all our headers and the body. The exchange and the time are not
covered: a retry returns through the default exchange, and the broker may set the time. Every process that publishes signs, so retry
copies, dead letters and replays are signed anew. What is consumed from a foreign queue has no signature.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.amqp.messages import OutboundMessage
from bus.ids import derive_key
from bus.observability import metrics
from contracts.wire import Header

OUR_HEADERS = "atelier-"
MISSING, INVALID = "signature-missing", "signature-invalid"
FAULT_MESSAGES = {
    MISSING: "the message has no signature: with ATELIER_SIGN_MESSAGES=on only processes with this ATELIER_SECRET may publish",
    INVALID: "the signature does not match the message: it was changed, or its publisher has another ATELIER_SECRET",
}

_keys: dict[str, bytes] = {}
"""The key of the signatures, under its purpose; empty while messages are not signed. Set when a process starts."""

log = structlog.get_logger()


def sign_with(secret: str | None) -> None:
    """Sign and verify with this secret from now on, in this process; with None do neither."""
    _keys.clear()
    if secret:
        _keys["signatures"] = derive_key(secret, "signatures")


def signature_headers(message: OutboundMessage) -> dict[str, str]:
    """The header to add to a message of ours; empty while messages are not signed."""
    if not _keys:
        return {}
    properties = (message.routing_key, message.message_id, message.job_id, message.reply_to, message.type)
    return {Header.SIGNATURE.value: _sign(properties, message.headers, message.body)}


def find_fault(message: AbstractIncomingMessage) -> str | None:
    """MISSING or INVALID; None for a valid signature, and while messages are not signed. Never raises."""
    if not _keys:
        return None
    headers = message.headers or {}
    given = headers.get(Header.SIGNATURE.value)
    if not isinstance(given, str):
        return MISSING
    properties = (message.routing_key, message.message_id, message.correlation_id, message.reply_to, message.type)
    expected = _sign(properties, headers, message.body)
    return None if hmac.compare_digest(given.encode(errors="replace"), expected.encode()) else INVALID


def is_refused(message: AbstractIncomingMessage, kind: str) -> bool:
    """Whether to drop a message that cannot be dead-lettered: an event, a reply, a control message. Logged and counted."""
    if fault := find_fault(message):
        metrics.UNSIGNED_MESSAGES.labels(kind).inc()
        log.warning("message.signature_refused", kind=kind, fault=fault, routing_key=message.routing_key, message_id=message.message_id)
    return fault is not None


def _sign(properties: tuple[str | None, ...], headers: Mapping[str, Any], body: bytes) -> str:
    ours = {name: value for name, value in headers.items() if name.startswith(OUR_HEADERS) and name != Header.SIGNATURE}
    signed = json.dumps([[value or "" for value in properties], ours, hashlib.sha256(body).hexdigest()], sort_keys=True, default=str)
    return hmac.new(_keys["signatures"], signed.encode(), "sha256").hexdigest()
