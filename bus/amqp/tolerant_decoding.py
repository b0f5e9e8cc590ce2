"""Makes the decoders of pamqp total: what they cannot decode becomes a marked message, and not an error that ends the connection.

RabbitMQ accepts properties that pamqp refuses, such as text that is not UTF-8, and delivers them (decision 11). The error of pamqp would
close the connection; the message would be delivered again to the next one, for ever.
"""

import struct
from collections.abc import Callable
from functools import wraps
from typing import Any

from pamqp import decode
from pamqp.commands import Basic
from pamqp.header import ContentHeader

PROPERTIES_LIMIT = 32_768
"""Bytes. pamqp's time to decode a table grows with the square of its size: 1.5 s for a frame of 128 kB, 0.1 s for this limit."""
UNDECODABLE_HEADER = "undecodable"
REASON_LIMIT = 300

Decoder = Callable[[bytes], tuple[int, str]]


class UndecodableText(str):
    """A short string that is not UTF-8: its invalid bytes are escaped."""


class UndecodableHeaders(dict[str, Any]):
    """In place of the headers of a message whose properties cannot be decoded; a publisher cannot make one. It holds the reason."""


def undecodable_reason(headers: object) -> str | None:
    """Why the properties of a message could not be decoded; None for one that was decoded."""
    return str(headers[UNDECODABLE_HEADER]) if isinstance(headers, UndecodableHeaders) else None


def make_decoding_tolerant() -> None:
    """Replace the two entrances of pamqp's decoders. Called wherever a connection is opened; the second call changes nothing."""
    if not hasattr(ContentHeader.unmarshal, "__wrapped__"):
        ContentHeader.unmarshal = _total_content_header(ContentHeader.unmarshal)  # type: ignore[method-assign,assignment]
    if not hasattr(decode.METHODS["shortstr"], "__wrapped__"):
        decode.METHODS["shortstr"] = _total_short_string(decode.METHODS["shortstr"])


def _total_content_header(original: Callable[[ContentHeader, bytes], None]) -> Callable[[ContentHeader, bytes], None]:
    """Without properties, and with UndecodableHeaders, where `original` raises. The body's size is read in any case."""

    @wraps(original)
    def unmarshal(self: ContentHeader, data: bytes) -> None:
        try:
            if len(data) > PROPERTIES_LIMIT:
                raise ValueError(f"they have {len(data)} bytes, the limit is {PROPERTIES_LIMIT}")
            original(self, data)
            _require_usable(self.properties)
        except Exception as error:  # of every kind: ValueError, OverflowError, RecursionError, struct.error, decimal's
            reason = f"{type(error).__name__}: {error}"[:REASON_LIMIT]
            self.class_id, self.weight, self.body_size = struct.unpack(">HHQ", data[:12])
            self.properties = Basic.Properties(headers=UndecodableHeaders({UNDECODABLE_HEADER: reason}))

    return unmarshal


def _require_usable(properties: Basic.Properties) -> None:
    """Raises ValueError for properties of which aio-pika cannot build a message, or with text that is not UTF-8."""
    for name in Basic.Properties.__slots__:
        if isinstance(getattr(properties, name), UndecodableText):
            raise ValueError(f"{name} is not UTF-8")
    if properties.delivery_mode not in {None, 1, 2}:
        raise ValueError(f"delivery_mode is {properties.delivery_mode}, neither 1 nor 2")
    float(properties.expiration or 0)


def _total_short_string(original: Callable[..., tuple[int, Any]]) -> Decoder:
    """Also for routing keys, which publishers choose, and for the broker's error texts, which it may cut within a character."""

    @wraps(original)
    def short_string(value: bytes) -> tuple[int, str]:
        try:
            return original(value)
        except UnicodeDecodeError:
            end = 1 + value[0]
            return end, UndecodableText(value[1:end].decode("utf-8", "backslashreplace"))

    return short_string
