"""Properties and headers as an operator reads them: name, type in the protocol, value. The values are those of the encoding."""

import struct
from collections.abc import Iterator

from pamqp import decode

from bus.amqp.raw_properties import RawProperties
from bus.dead_letters.record import sanitize_text
from contracts.dead_letter import TypedValue

FIELD_TYPES = {
    b"V": "void", b"\x00": "void", b"t": "bool", b"b": "int8", b"B": "uint8", b"s": "int16", b"u": "uint16", b"I": "int32", b"i": "uint32",
    b"l": "int64", b"L": "int64", b"f": "float", b"d": "double", b"D": "decimal", b"S": "text", b"x": "bytes", b"T": "timestamp",
    b"A": "array", b"F": "table",
}  # fmt: skip
"""The types of the protocol with RabbitMQ's errata."""
PROPERTY_TYPES = {"delivery_mode": "uint8", "priority": "uint8", "timestamp": "timestamp"}
SHOWN_CHARS = 300
DECODED_BYTES = 4096
"""A larger array or table is not shown: the time to decode one grows with the square of its size."""
SHOWN_VALUES = 200


def typed_values(encoded: bytes | None) -> list[TypedValue]:
    """The properties, then the headers. Empty for none, and for properties that the protocol does not allow."""
    if encoded is None:
        return []
    try:
        raw = RawProperties.parse(encoded)
    except ValueError:
        return []
    return list(_typed_values(raw))[:SHOWN_VALUES]


def _typed_values(raw: RawProperties) -> Iterator[TypedValue]:
    for name in raw.values:
        yield TypedValue(name=name, type=PROPERTY_TYPES.get(name, "text"), value=describe_property(raw, name) or "")
    for encoded_name, field in raw.headers or ():
        name = sanitize_text(encoded_name)
        yield TypedValue(name=f"header {name}", type=FIELD_TYPES[field[:1]], value=describe_field(field))


def describe_property(raw: RawProperties, name: str) -> str | None:
    """The value of a property; None when it is absent."""
    value = raw.values.get(name)
    if value is None:
        return None
    return str(int.from_bytes(value)) if name in PROPERTY_TYPES else _text(value[1:])


def describe_field(field: bytes) -> str:
    """The value of a header."""
    kind, value = field[:1], field[1:]
    match kind:
        case b"S":
            return _text(value[4:])
        case b"x":
            return value[4 : 4 + SHOWN_CHARS // 2].hex()
        case b"T":
            return str(struct.unpack(">Q", value)[0])
        case b"A" | b"F" if len(field) > DECODED_BYTES:
            return f"{len(field)} bytes"
    try:
        return sanitize_text(repr(decode.embedded_value(field)[1]))[:SHOWN_CHARS]
    except Exception as error:  # of every kind, as in `tolerant_decoding`
        return f"{type(error).__name__}: {value[: SHOWN_CHARS // 4].hex()}"


def _text(value: bytes) -> str:
    """What is not UTF-8 is escaped."""
    return sanitize_text(value[: 4 * SHOWN_CHARS].decode(errors="backslashreplace"))[:SHOWN_CHARS]
