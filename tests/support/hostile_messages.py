"""Hostile messages: properties and headers with every AMQP field type, well-formed and not, as raw frames that RabbitMQ accepts.

`hostile_messages` is deterministic: the same seed gives the same messages. `RawPublisher` sends them.
"""

import random
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from contracts.wire import Header
from tests.support.raw_amqp import RawPublisher

UNDECODABLE = "undecodable-properties"
OUR_HEADERS = (*(header.value for header in Header), "x-delivery-count", "x-death", "x-first-death-queue", "x-first-death-reason")
PROPERTY_BITS = {
    "content_type": 15, "content_encoding": 14, "headers": 13, "delivery_mode": 12, "priority": 11, "correlation_id": 10, "reply_to": 9,
    "expiration": 8, "message_id": 7, "timestamp": 6, "type": 5, "user_id": 4, "app_id": 3, "cluster_id": 2,
}  # fmt: skip
SHORT_STRINGS = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "app_id", "cluster_id")


@dataclass(frozen=True)
class HostileMessage:
    """`properties`: the flags and values of a content header. `cause`: the code under which it is dead-lettered, None if it may be done."""

    name: str
    properties: bytes
    body: bytes
    cause: str | None

    def publisher(self, routing_key: str | bytes, exchange: str = "") -> Callable[[RawPublisher], None]:
        """Publishes it, by default to a queue, and waits for the confirm."""
        key = routing_key.encode() if isinstance(routing_key, str) else routing_key
        return partial(RawPublisher.publish, properties=self.properties, body=self.body, exchange=exchange.encode(), routing_key=key)


def hostile_messages(
    body: Callable[[int], bytes] = lambda number: b"{%d" % number, *, cause: str | None = "invalid-json", seed: int = 0, rounds: int = 1
) -> list[HostileMessage]:
    """Each message has the body `body(number)`, for which a consumer dead-letters it under `cause` if its properties can be decoded."""
    drawn = random.Random(seed)
    cases = [*undecodable_properties(), *odd_short_strings(), *odd_headers()]
    cases += [mixed_headers(drawn, number) for number in range(40 * rounds)]
    drawn.shuffle(cases)
    return [
        HostileMessage(f"{number}: {name}", properties, body(number), cause if decodable else UNDECODABLE)
        for number, (name, properties, decodable) in enumerate(cases)
    ]


def publish_all(url: str, messages: Iterable[HostileMessage], routing_key: str | bytes, exchange: str = "") -> None:
    """On a connection of its own. Blocks: call it in a thread."""
    with RawPublisher(url) as publisher:
        for message in messages:
            message.publisher(routing_key, exchange)(publisher)


CONTINUED_FLAGS = b"\x00\x01"
"""Flags that announce more flags, of which there are none. A quorum queue corrects them, a classic one delivers them."""

Case = tuple[str, bytes, bool]
"""A name, the properties, and whether the client library can decode them."""


def encode_properties(**values: bytes) -> bytes:
    """`values` are encoded already, and stand in the order of the flags."""
    ordered = sorted(values, key=PROPERTY_BITS.__getitem__, reverse=True)
    flags = sum(1 << PROPERTY_BITS[name] for name in ordered)
    return struct.pack(">H", flags) + b"".join(values[name] for name in ordered)


def short(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def long(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def entry(name: str | bytes, field: bytes) -> bytes:
    return short(name.encode() if isinstance(name, str) else name) + field


def table(*entries: bytes) -> bytes:
    return long(b"".join(entries))


def nested(kind: bytes, depth: int) -> bytes:
    """A field that contains itself `depth` times, as an array or a table."""
    field = kind + table()
    for _ in range(depth):
        field = kind + long(field if kind == b"A" else entry("k", field))
    return field


DECODABLE_FIELDS: dict[str, bytes] = {
    "true": b"t\x01", "bool 255": b"t\xff", "int8": b"b\x80", "uint8": b"B\xff", "int16": b"s\x80\x00", "uint16": b"u\xff\xff",
    "int32": b"I\x80\x00\x00\x00", "uint32": b"i\xff\xff\xff\xff", "int64 max": b"l" + b"\x7f" + b"\xff" * 7,
    "int64 min": b"L\x80" + b"\0" * 7,
    "zero": b"I\0\0\0\0", "float": b"f" + struct.pack(">f", -1.5),
    "double huge": b"d" + struct.pack(">d", 1e308), "double tiny": b"d" + struct.pack(">d", 5e-324), "decimal": b"D\x02\x00\x00\x01\x00",
    "decimal scale 255": b"D\xff\x7f\xff\xff\xff", "decimal negative": b"D\x00\x80\x00\x00\x00", "empty text": b"S" + long(b""),
    "digits": b"S" + long(b"9" * 26), "many digits": b"S" + long(b"9" * 5000), "text inf": b"S" + long(b"inf"),
    "text nul": b"S" + long(b"a\0b"),
    "text control": b"S" + long(b"a\r\nX: 1\x1b[2J"), "text not utf-8": b"S" + long(b"\xff\xfe"),
    "text surrogate": b"S" + long(b"\xed\xa0\x80"),
    "text long": b"S" + long("안".encode() * 5000), "text early": b"S" + long(b"0001-01-01T00:00:00+14:00"),
    "text late": b"S" + long(b"9999-12-31T23:59:59-14:00"), "text path": b"S" + long(b"../../etc/passwd"), "void": b"V",
    "bytes": b"x" + long(b"\0\xff" * 8), "no bytes": b"x" + long(b""), "empty array": b"A" + table(),
    "array": b"A" + long(b"VI\0\0\0\x07t\x01"),
    "nested arrays": nested(b"A", 60), "nested tables": nested(b"F", 60), "empty table": b"F" + table(),
    "table": b"F" + table(entry("", b"V"), entry("k" * 255, b"t\x01"), entry("count", b"S" + long(b"x"))), "time 0": b"T" + b"\0" * 8,
    "time ms": b"T" + struct.pack(">Q", 1_790_000_000_000), "time 9999": b"T" + struct.pack(">Q", 253_402_300_799_000),
}  # fmt: skip
NON_FINITE_FIELDS: dict[str, bytes] = {
    f"{kind} {number}": kind[:1].encode() + struct.pack(f">{kind[:1]}", float(number)) for kind in ("float", "double")
    for number in ("nan", "inf", "-inf")
}  # fmt: skip
"""RabbitMQ closes the connection of their publisher, since Erlang has no such numbers. Another broker may deliver them."""
UNDECODABLE_FIELDS: dict[str, bytes] = {
    "time 2^48": b"T" + struct.pack(">Q", 2**48), "time 2^63": b"T" + struct.pack(">Q", 2**63), "time max": b"T" + b"\xff" * 8,
    "deep arrays": nested(b"A", 6000), "deep tables": nested(b"F", 4000), "key not utf-8": b"F" + table(entry(b"\xff", b"V")),
    "time in array": b"A" + long(b"T" + b"\xff" * 8), "large array": b"A" + long(b"V" * 100_000), "large text": b"S" + long(b"x" * 100_000),
}  # fmt: skip
"""The library raises on them, or takes too long: arrays and texts of 100 kB are over the limit of properties."""
SHORT_VALUES: dict[str, bytes] = {
    "nul": b"a\0b", "control": b"a\r\nX: 1", "longest": b"x" * 255, "multi-byte": "안".encode() * 85, "escape": b"\x1b[2J",
    "dots": b"a.b.#.*",
    "path": b"../../x", "noncharacter": "\uffff".encode(), "c1": "\x9b".encode(), "spaces": b" " * 255, "empty": b"",
}  # fmt: skip
BAD_SHORT_VALUES: dict[str, bytes] = {"not utf-8": b"\xff\xfe", "surrogate": b"\xed\xa0\x80", "cut": "안".encode()[:2]}


def undecodable_properties() -> Iterator[Case]:
    for name in SHORT_STRINGS:
        for label, value in BAD_SHORT_VALUES.items():
            yield f"{name} {label}", encode_properties(**{name: short(value)}), False
    for number in (2**48, 1_790_000_000_000_000, 2**63, 2**64 - 1):
        yield f"timestamp {number}", encode_properties(timestamp=struct.pack(">Q", number)), False
    for name, field in UNDECODABLE_FIELDS.items():
        yield f"header {name}", encode_properties(headers=table(entry("h", field))), False
    yield "header name not utf-8", encode_properties(headers=table(entry(b"\xff\xfe", b"V"))), False
    yield "many headers", encode_properties(headers=table(*(entry(f"{n:04x}", b"V") for n in range(12_000)))), False


def odd_short_strings() -> Iterator[Case]:
    for name in SHORT_STRINGS:
        for label, value in SHORT_VALUES.items():
            yield f"{name} {label}", encode_properties(**{name: short_property(name, value)}), True
    yield "priority 255", encode_properties(priority=b"\xff"), True
    yield "expiration long", encode_properties(expiration=short(b"4000000000")), True
    yield "unknown flag", b"\x00\x02", True


def short_property(name: str, value: bytes) -> bytes:
    """A reply queue has a prefix: an actor refuses every other queue by name."""
    return short(b"amq.gen-" + value[:246] if name == "reply_to" and value else value)


def odd_headers() -> Iterator[Case]:
    """Every value in all of our headers at once: a consumer reads them all."""
    for label, field in DECODABLE_FIELDS.items():
        if len(field) < 1000:
            yield f"all headers {label}", encode_properties(headers=table(*(entry(name, field) for name in OUR_HEADERS))), True
    for label, field in DECODABLE_FIELDS.items():
        yield f"attempt {label}", encode_properties(headers=table(entry(Header.ATTEMPT.value, field))), True


def mixed_headers(drawn: random.Random, number: int) -> Case:
    """Each of our headers with a value of its own, beside odd properties."""
    fields = [entry(name, DECODABLE_FIELDS[drawn.choice([*DECODABLE_FIELDS])]) for name in OUR_HEADERS if drawn.random() < 0.7]
    properties = {name: short_property(name, SHORT_VALUES[drawn.choice([*SHORT_VALUES])]) for name in SHORT_STRINGS if drawn.random() < 0.3}
    headers = table(*fields)
    if len(headers) > 30_000:
        headers = table(*(field for field in fields if len(field) < 1000))
    return f"mixed {number}", encode_properties(headers=headers, delivery_mode=b"\x02", **properties), True
