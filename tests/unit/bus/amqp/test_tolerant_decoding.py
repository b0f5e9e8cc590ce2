"""`make_decoding_tolerant`: whatever frame arrives, pamqp returns one. Its original decoders raise on these, or hold the event loop."""

import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode, frame
from pamqp.commands import Basic, Channel
from pamqp.header import ContentHeader

from bus.amqp.tolerant_decoding import make_decoding_tolerant, undecodable_reason
from tests.support.hostile_messages import (
    BAD_SHORT_VALUES,
    CONTINUED_FLAGS,
    HostileMessage,
    encode_properties,
    entry,
    hostile_messages,
    short,
    table,
    undecodable_properties,
)

FRAME_END = b"\xce"
UNDECODABLE = [HostileMessage(name, properties, b"{}", None) for name, properties, _ in undecodable_properties()]
UNDECODABLE.append(HostileMessage("flags continued", CONTINUED_FLAGS, b"{}", None))
OVER_LIMIT = ("header large array", "header large text", "many headers")
"""pamqp decodes them, in a time that grows with the square of their size."""
DECODABLE = [message for message in hostile_messages() if message.cause == "invalid-json"]
EVENT_LOOP_SECONDS = 0.5
"""Of this thread's own time, for the largest properties that are decoded. A frame four times as large would take sixteen times as long."""


@pytest.fixture(autouse=True)
def _tolerant() -> None:
    make_decoding_tolerant()


def content_header(properties: bytes, body_size: int = 2) -> bytes:
    return struct.pack(">HHQ", 60, 0, body_size) + properties


def unmarshal(kind: int, payload: bytes) -> Any:
    """The frame that pamqp returns for the bytes of a frame."""
    data = struct.pack(">BHI", kind, 1, len(payload)) + payload + FRAME_END
    consumed, channel, received = frame.unmarshal(data)
    assert (consumed, channel) == (len(data), 1)
    return received


def original(decoder: Any) -> Any:
    """pamqp's own decoder. There is none when an upgrade has moved what we replace."""
    return decoder.__wrapped__


@pytest.mark.parametrize("message", UNDECODABLE, ids=lambda message: message.name)
def test_undecodable_properties_become_marked_message(message: HostileMessage) -> None:
    received = unmarshal(2, content_header(message.properties, 7))
    assert received.body_size == 7
    assert undecodable_reason(received.properties.headers)
    assert {getattr(received.properties, name) for name in Basic.Properties.__slots__ if name not in {"headers", "message_id"}} <= {
        None,
        "",
    }


@pytest.mark.parametrize("message", [each for each in UNDECODABLE if each.name not in OVER_LIMIT], ids=lambda message: message.name)
def test_pamqp_alone_raises(message: HostileMessage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replacement is still needed: when pamqp decodes all of these, it can go."""
    monkeypatch.setitem(decode.METHODS, "shortstr", original(decode.METHODS["shortstr"]))
    with pytest.raises((ValueError, OverflowError, RecursionError)):
        original(ContentHeader.unmarshal)(ContentHeader(), content_header(message.properties))


@pytest.mark.parametrize("message", DECODABLE, ids=lambda message: message.name)
def test_odd_but_valid_properties_are_decoded_as_before(message: HostileMessage) -> None:
    expected = ContentHeader()
    original(ContentHeader.unmarshal)(expected, content_header(message.properties))
    received = unmarshal(2, content_header(message.properties))
    assert repr(received.properties.headers) == repr(expected.properties.headers or {})
    assert received.properties.message_id == expected.properties.message_id


@pytest.mark.parametrize("value", BAD_SHORT_VALUES.values(), ids=BAD_SHORT_VALUES)
def test_routing_key_that_is_not_utf8_is_escaped(value: bytes) -> None:
    """A publisher chooses it; a fanout or `#` binding delivers it."""
    deliver = struct.pack(">HH", 60, 60) + short(b"tag") + struct.pack(">QB", 41, 1) + short(b"exchange") + short(value)
    received = unmarshal(1, deliver)
    assert (received.consumer_tag, received.delivery_tag, received.redelivered, received.exchange) == ("tag", 41, True, "exchange")
    assert received.routing_key.isascii()
    with pytest.raises(UnicodeDecodeError):
        original(decode.METHODS["shortstr"])(short(value))


def test_error_text_that_the_broker_cut_in_a_character_is_escaped() -> None:
    close = struct.pack(">HHH", 20, 40, 404) + short("NOT_FOUND 안".encode()[:-1]) + struct.pack(">HH", 60, 40)
    received = unmarshal(1, close)
    assert isinstance(received, Channel.Close)
    assert received.reply_code == 404


@pytest.mark.parametrize("mode", [0, 3, 255])
def test_delivery_mode_of_which_no_message_can_be_built_is_undecodable(mode: int) -> None:
    received = unmarshal(2, content_header(encode_properties(delivery_mode=bytes([mode]))))
    assert "delivery_mode" in (undecodable_reason(received.properties.headers) or "")


def test_largest_decoded_table_does_not_hold_the_event_loop() -> None:
    """pamqp copies the rest of a table for each of its values."""
    properties = encode_properties(headers=table(entry("h", b"A" + struct.pack(">I", 32_000) + b"V" * 32_000)))
    started = time.thread_time()
    received = unmarshal(2, content_header(properties))
    assert time.thread_time() - started < EVENT_LOOP_SECONDS
    assert undecodable_reason(received.properties.headers) is None
    assert len(received.properties.headers["h"]) == 32_000


def test_publisher_cannot_make_the_mark() -> None:
    marked = encode_properties(headers=table(entry("undecodable", b"S" + struct.pack(">I", 1) + b"x")))
    assert undecodable_reason(unmarshal(2, content_header(marked)).properties.headers) is None


@given(st.binary(max_size=200))
def test_any_bytes_of_properties_give_a_frame(properties: bytes) -> None:
    assert unmarshal(2, content_header(properties)).body_size == 2


def test_second_call_changes_nothing() -> None:
    before = ContentHeader.unmarshal, decode.METHODS["shortstr"]
    make_decoding_tolerant()
    assert (ContentHeader.unmarshal, decode.METHODS["shortstr"]) == before
