"""`RawProperties`: whatever properties a broker delivers, they are split and joined again without a change of any byte."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from bus.amqp.raw_properties import RawProperties, decode_plain_properties
from bus.amqp.raw_properties import encode_properties as encode_property_values
from tests.support.hostile_messages import CONTINUED_FLAGS, HostileMessage, encode_properties, entry, hostile_messages, long, short, table

MESSAGES = [message for message in hostile_messages(rounds=3) if message.properties != b"\x00\x02"]
"""All but the one with a flag that no property has."""


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_properties_are_joined_as_they_were(message: HostileMessage) -> None:
    assert RawProperties.parse(message.properties).encode() == message.properties


def test_repeated_header_is_kept_and_the_last_one_read() -> None:
    encoded = encode_properties(headers=table(entry("h", b"t\x01"), entry("h", b"S" + long(b"x"))))
    raw = RawProperties.parse(encoded)
    assert raw.header("h") == b"S" + long(b"x")
    assert raw.with_headers({"h": 7}).headers == ((b"h", b"b\x07"),)
    assert raw.without_headers(["h"]).encode() == encode_properties(headers=table())


def test_text_that_is_not_utf_8_is_none_and_can_be_replaced() -> None:
    raw = RawProperties.parse(encode_properties(message_id=short(b"\xff"), app_id=short(b"shop")))
    assert (raw.text("message_id"), raw.text("app_id"), raw.text("type")) == (None, "shop", None)
    changed = raw.with_texts(message_id="m", app_id=None)
    assert changed.encode() == encode_properties(message_id=short(b"m"))


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x80",
        CONTINUED_FLAGS,
        encode_properties(type=short(b"long"))[:-1],
        encode_properties(timestamp=b"\0" * 7),
        encode_properties(headers=long(entry("h", b"?"))),
        encode_properties(headers=long(entry("h", b"S" + b"\xff\xff\xff\xff"))),
        encode_properties(headers=long(b"\xff")),
        encode_properties(headers=b"\xff\xff\xff\xff"),
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match=r"early|flags|type"):
        RawProperties.parse(encoded)


def test_a_frame_of_headers_takes_milliseconds() -> None:
    encoded = encode_properties(headers=table(*(entry("", b"V") for _ in range(60_000))))
    started = time.process_time()
    assert RawProperties.parse(encoded).encode() == encoded
    assert time.process_time() - started < 0.5


VALUES = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.text(max_size=40) for name in ("content_type", "correlation_id", "reply_to", "message_id", "message_type", "app_id")},
        "headers": st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=20) | st.booleans() | st.integers(0, 2**40)),
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 9),
        "timestamp": st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    },
)


@given(VALUES)
def test_values_are_encoded_and_decoded_as_by_the_library(values: dict[str, Any]) -> None:
    library = Basic.Properties(**values)
    encoded = encode_property_values(**values)
    assert encoded == library.marshal()
    received = Basic.Properties()
    received.unmarshal(int.from_bytes(encoded[:2]), encoded[2:])
    assert decode_plain_properties(encoded) == received


@pytest.mark.parametrize("message", [message for message in MESSAGES if "deep" not in message.name], ids=lambda message: message.name)
def test_hostile_properties_are_decoded_as_by_the_library_or_left_to_it(message: HostileMessage) -> None:
    """Those that nest too deeply are a RecursionError of both."""
    plain = decode_plain_properties(message.properties)
    if plain is not None:
        library = Basic.Properties()
        library.unmarshal(int.from_bytes(message.properties[:2]), message.properties[2:])
        assert repr(dict(plain)) == repr(dict(library))
