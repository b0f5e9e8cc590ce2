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

from bus.amqp.raw_properties import RawProperties, decode_plain_properties
from contracts.wire import Header

PROPERTIES_LIMIT = 32_768
"""Bytes. pamqp's time to decode a table grows with the square of its size: 1.5 s for a frame of 128 kB, 0.1 s for this limit."""
UNDECODABLE_HEADER = "undecodable"
REASON_LIMIT = 300

Decoder = Callable[[bytes], tuple[int, str]]


class UndecodableText(str):
    """A short string that is not UTF-8: its invalid bytes are escaped."""


class ReceivedHeaders(dict[str, Any]):
    """The headers of a received message, and all of its properties as they were encoded. True when empty, so that nobody replaces it."""

    def __init__(self, headers: dict[str, Any], encoded: bytes) -> None:
        super().__init__(headers)
        self.encoded = encoded

    def __bool__(self) -> bool:
        return True


class UndecodableHeaders(ReceivedHeaders):
    """In place of the headers of a message whose properties cannot be decoded; a publisher cannot make one. It holds the reason."""


def undecodable_reason(headers: object) -> str | None:
    """Why the properties of a message could not be decoded; None for one that was decoded."""
    return str(headers[UNDECODABLE_HEADER]) if isinstance(headers, UndecodableHeaders) else None


def encoded_properties(headers: object) -> bytes | None:
    """The properties of a received message as they were encoded; None for headers that no connection of ours has read."""
    return headers.encoded if isinstance(headers, ReceivedHeaders) else None


def decode_properties(encoded: bytes) -> Basic.Properties:
    """The values of encoded properties, as a connection of ours reads them. Never raises: see `undecodable_reason`."""
    unmarshal, header = ContentHeader.unmarshal, ContentHeader()
    _total_content_header(getattr(unmarshal, "__wrapped__", unmarshal))(header, struct.pack(">HHQ", Basic.frame_id, 0, 0) + encoded)
    return header.properties


def make_decoding_tolerant() -> None:
    """Replace the two entrances of pamqp's decoders. Called wherever a connection is opened; the second call changes nothing."""
    if not hasattr(ContentHeader.unmarshal, "__wrapped__"):
        ContentHeader.unmarshal = _total_content_header(ContentHeader.unmarshal)  # type: ignore[method-assign,assignment]
    if not hasattr(decode.METHODS["shortstr"], "__wrapped__"):
        decode.METHODS["shortstr"] = _total_short_string(decode.METHODS["shortstr"])


def _total_content_header(original: Callable[[ContentHeader, bytes], None]) -> Callable[[ContentHeader, bytes], None]:
    """With ReceivedHeaders; with UndecodableHeaders and no property but a readable message id where `original` raises.

    The body's size is read in any case.
    """

    @wraps(original)
    def unmarshal(self: ContentHeader, data: bytes) -> None:
        encoded = bytes(data[12:])
        try:
            others, carried = _split_original_properties(encoded) if len(encoded) > PROPERTIES_LIMIT else (encoded, {})
            if len(others) > PROPERTIES_LIMIT:
                raise ValueError(f"they have {len(others)} bytes, the limit is {PROPERTIES_LIMIT}")
            if (plain := decode_plain_properties(others)) is not None:
                self.class_id, self.weight, self.body_size = struct.unpack(">HHQ", data[:12])
                self.properties = plain
            else:
                original(self, data[:12] + others)
            _require_usable(self.properties)
            self.properties.headers = ReceivedHeaders((self.properties.headers or {}) | carried, encoded)
        except Exception as error:  # of every kind: ValueError, OverflowError, RecursionError, struct.error, decimal's
            reason = f"{type(error).__name__}: {error}"[:REASON_LIMIT]
            self.class_id, self.weight, self.body_size = struct.unpack(">HHQ", data[:12])
            headers = UndecodableHeaders({UNDECODABLE_HEADER: reason}, encoded)
            self.properties = Basic.Properties(headers=headers, message_id=_readable_message_id(encoded))

    return unmarshal


def _split_original_properties(encoded: bytes) -> tuple[bytes, dict[str, Any]]:
    """A dead letter of ours carries the properties of a message in one header: they are no table, and take no time to decode."""
    name = Header.ORIGINAL_PROPERTIES.value
    if name.encode() not in encoded:
        return encoded, {}
    raw = RawProperties.parse(encoded)
    field = raw.header(name)
    if field is None or field[:1] != b"x":
        return encoded, {}
    return raw.without_headers([name]).encode(), {name: bytearray(field[5:])}


def _readable_message_id(encoded: bytes) -> str | None:
    try:
        return RawProperties.parse(encoded).text("message_id")
    except ValueError:
        return None


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
