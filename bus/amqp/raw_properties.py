"""The properties of a message as the protocol encodes them: split into their parts and joined again without a change of any value.

A client library's values lose what the encoding says: the width of an integer, float or double, text or bytes, two fields of one name.
What is kept and published again is therefore the encoding itself. Nothing here depends on a value that can be decoded.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from pamqp import decode, encode
from pamqp.commands import Basic

FLAGS = Basic.Properties.flags
"""Property to its bit, in the order of the encoding."""
FIXED_SIZES = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
"""Bytes of the properties that are neither a short string nor the table of headers."""
FIELD_SIZES = {b"V": 0, b"\x00": 0, b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"f": 4, b"l": 8, b"L": 8, b"d": 8}
FIELD_SIZES |= {b"T": 8, b"D": 5}
"""Bytes of a field after its type. Each other type begins with its length."""
LONG_FIELDS = b"SxAF"

Header = tuple[bytes, bytes]
"""A name, and a field: its type and its value."""


@dataclass(frozen=True)
class RawProperties:
    """`values`: the encoded properties but for the headers. `headers`: in their order, with repeated names; None: the message has none."""

    values: Mapping[str, bytes]
    headers: tuple[Header, ...] | None = None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """From the flags and values of a content header. Raises ValueError for what the protocol does not allow."""
        try:
            return cls._parse(data)
        except (struct.error, IndexError) as error:
            raise ValueError(f"the properties end too early: {error}") from error

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        [flags] = struct.unpack_from(">H", data)
        if flags & 1:
            raise ValueError("the flags announce more flags, which the protocol does not have")
        values: dict[str, bytes] = {}
        headers, offset = None, 2
        for name, bit in FLAGS.items():
            if not flags & bit:
                continue
            size = 4 + _length(data, offset) if name == "headers" else FIXED_SIZES.get(name) or 1 + data[offset]
            value = data[offset : offset + size]
            if len(value) < size:
                raise ValueError(f"the property {name} ends too early")
            if name == "headers":
                headers = tuple(_split_table(value[4:]))
            else:
                values[name] = value
            offset += size
        return cls(values, headers)

    def encode(self) -> bytes:
        """The flags and values, as `parse` reads them."""
        parts = dict(self.values)
        if self.headers is not None:
            table = b"".join(bytes([len(name)]) + name + field for name, field in self.headers)
            parts["headers"] = struct.pack(">I", len(table)) + table
        flags = sum(FLAGS[name] for name in parts)
        return struct.pack(">H", flags) + b"".join(parts[name] for name in FLAGS if name in parts)

    def text(self, name: str) -> str | None:
        """A property that is a short string; None when it is absent or not UTF-8."""
        try:
            return self.values[name][1:].decode() if name in self.values else None
        except UnicodeDecodeError:
            return None

    def header(self, name: str) -> bytes | None:
        """The field of a header, the last one where a name is repeated."""
        return dict(self.headers or ()).get(name.encode())

    def header_text(self, name: str) -> str | bytes | None:
        """The value of a header that is text or bytes, as the client library decodes it; None for any other."""
        field = self.header(name)
        return decode.embedded_value(field)[1] if field and field[:1] in b"Sx" else None  # type: ignore[return-value]

    def with_texts(self, **texts: str | None) -> Self:
        """With these short strings; None leaves a property out."""
        kept = {name: value for name, value in self.values.items() if name not in texts}
        return replace(self, values=kept | {name: encode.short_string(text) for name, text in texts.items() if text is not None})

    def with_headers(self, headers: Mapping[str, Any]) -> Self:
        """With these headers in place of those of the same names, and after the others."""
        if not headers:
            return self
        new = [(name.encode(), _encode_field(value)) for name, value in headers.items()]
        return replace(self, headers=(*self._others(headers), *new))

    def without_headers(self, names: Iterable[str]) -> Self:
        return replace(self, headers=None if self.headers is None else self._others(names))

    def _others(self, names: Iterable[str]) -> tuple[Header, ...]:
        encoded = {name.encode() for name in names}
        return tuple(header for header in self.headers or () if header[0] not in encoded)


ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "headers": encode.field_table,
    "delivery_mode": encode.octet,
    "priority": encode.octet,
    "timestamp": encode.timestamp,
}
"""Of the properties that are no short strings."""


def encode_properties(**values: Any) -> bytes:
    """Flags and values as the client library encodes them, in a third of its time. None and "" are left out, as there.

    Raises TypeError for a name that is no property.
    """
    if unknown := values.keys() - FLAGS.keys():
        raise TypeError(f"no properties: {', '.join(sorted(unknown))}")
    flags, parts = 0, []
    for name, bit in FLAGS.items():
        value = values.get(name)
        if value is not None and value != "":
            flags |= bit
            parts.append(ENCODERS.get(name, encode.short_string)(value))
    return struct.pack(">H", flags) + b"".join(parts)


DECODERS: dict[str, Callable[[bytes], tuple[int, Any]]] = {
    "headers": decode.field_table,
    "delivery_mode": decode.octet,
    "priority": decode.octet,
    "timestamp": decode.timestamp,
}
"""Of the properties that are no short strings: the bytes taken, and the value."""


def decode_plain_properties(data: bytes) -> Basic.Properties | None:
    """The values as the client library decodes them, in half of its time. None for properties that it is to decode, or to refuse."""
    properties, at = Basic.Properties(), 2
    try:
        [flags] = struct.unpack_from(">H", data)
        for name, bit in FLAGS.items():
            if not flags & bit:
                continue
            if decoder := DECODERS.get(name):
                size, value = decoder(data[at:])
            else:
                size = 1 + data[at]
                value = data[at + 1 : at + size].decode()
            setattr(properties, name, value)
            at += size
    except (ValueError, IndexError, struct.error):  # a text that is not UTF-8 is a ValueError
        return None
    return None if flags & 1 or at > len(data) else properties


def _encode_field(value: Any) -> bytes:
    """The library would write a number of Python's precision as one of half of it."""
    return b"d" + encode.double(value) if isinstance(value, float) else encode.encode_table_value(value)


def _split_table(data: bytes) -> Iterable[Header]:
    offset = 0
    while offset < len(data):
        start = offset + 1 + data[offset]
        kind = data[start : start + 1]
        if kind and kind in LONG_FIELDS:
            end = start + 5 + _length(data, start + 1)
        elif kind in FIELD_SIZES:
            end = start + 1 + FIELD_SIZES[kind]
        else:
            raise ValueError(f"a header has the unknown type {kind!r}")
        if end > len(data):
            raise ValueError("the headers end too early")
        yield data[offset + 1 : start], data[start:end]
        offset = end


def _length(data: bytes, offset: int) -> int:
    return int(struct.unpack_from(">I", data, offset)[0])
