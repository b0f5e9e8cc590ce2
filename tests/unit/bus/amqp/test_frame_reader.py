"""The frames that come with every message are read as the client library reads them; what does not fit is left to it."""

import asyncio
import struct
from typing import Any

import pytest
from aiormq.connection import FrameReceiver
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.constants import FRAME_BODY, FRAME_METHOD
from pamqp.frame import marshal, unmarshal

from bus.amqp.frame_reader import decode_frame, read_frame

SHORT_TEXTS = st.text(max_size=60)
NAMES = st.from_regex(r"[a-zA-Z0-9\-_.:@#,/ ]{0,127}", fullmatch=True)
TAGS = st.integers(0, 2**63 - 1)
DELIVERIES = st.builds(Basic.Deliver, SHORT_TEXTS, TAGS, st.booleans(), NAMES, SHORT_TEXTS)
CONFIRMS = st.builds(Basic.Ack, TAGS, st.booleans())
OTHERS = st.builds(Basic.Nack, TAGS, st.booleans(), st.booleans())


def fields(frame: Any) -> tuple[type, dict[str, Any]]:
    return type(frame), dict(frame) if isinstance(frame, Frame) else vars(frame)


@given(DELIVERIES | CONFIRMS)
def test_a_delivery_and_a_confirm_are_decoded_as_by_the_library(frame: Frame) -> None:
    data = marshal(frame, 7)
    decoded = decode_frame(FRAME_METHOD, data[7:])
    assert decoded is not None
    assert fields(decoded) == fields(unmarshal(data)[2]) == fields(frame)


@given(st.binary(max_size=80), st.sampled_from([Basic.Deliver.index, Basic.Ack.index]))
@example(bytes(8) + b"\x02", Basic.Ack.index)  # a bit that means nothing
def test_any_bytes_of_a_method_are_decoded_as_by_the_library_or_left_to_it(arguments: bytes, method: int) -> None:
    payload = struct.pack(">I", method) + arguments + b"\xce"
    decoded = decode_frame(FRAME_METHOD, payload)
    if decoded is not None:
        assert fields(decoded) == fields(unmarshal(struct.pack(">BHI", FRAME_METHOD, 1, len(payload) - 1) + payload)[2])


@pytest.mark.parametrize("payload", [b"\xce", b"body without its end"])
def test_an_empty_or_unfinished_body_is_left_to_the_library(payload: bytes) -> None:
    assert decode_frame(FRAME_BODY, payload) is None


@given(st.lists(DELIVERIES | CONFIRMS | OTHERS | st.builds(ContentBody, st.binary(min_size=1, max_size=90)), max_size=8))
def test_a_stream_of_frames_is_read_as_by_the_library(frames: list[Any]) -> None:
    data = [marshal(frame, number) for number, frame in enumerate(frames, 1)]
    read = asyncio.run(read_all(b"".join(data), len(frames)))
    expected = [unmarshal(item) for item in data]
    assert [(size, channel, fields(frame)) for size, channel, frame in read] == [(size, ch, fields(frame)) for size, ch, frame in expected]


async def read_all(data: bytes, count: int) -> list[Any]:
    receiver = receive(data)
    return [await read_frame(receiver) for _ in range(count)]


def receive(data: bytes) -> FrameReceiver:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    receiver = FrameReceiver(reader)
    receiver.started = True
    return receiver


async def test_the_end_within_a_frame_is_the_library_s_error() -> None:
    receiver = receive(marshal(Basic.Ack(1), 1)[:-3])
    receiver.reader.feed_eof()
    with pytest.raises(AMQPConnectionError):
        await read_frame(receiver)


async def test_a_frame_with_another_end_is_the_library_s_error() -> None:
    with pytest.raises(InvalidFrameError):
        await read_frame(receive(marshal(Basic.Ack(1), 1)[:-1] + b"\x00"))
