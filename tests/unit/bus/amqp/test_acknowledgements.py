"""Acks: each has the frame of the client library, and one of a closed channel is dropped, since the message is delivered again."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelInvalidStateError
from pamqp.commands import Basic
from pamqp.frame import marshal

from bus.amqp import acknowledgements


class Delivered:
    """A message of a channel that is open or closed."""

    message_id = "m"

    def __init__(self, tag: int, *, closed: bool = False) -> None:
        self.delivery_tag, self.closed, self.written, self.rejected = tag, closed, list[bytes](), list[bool]()
        self.close_event = asyncio.Event()

    @property
    def channel(self) -> Any:
        if self.closed:
            raise ChannelInvalidStateError
        connection = SimpleNamespace(_transport_factory=SimpleNamespace(writer=SimpleNamespace(write=self.written.append)))
        return SimpleNamespace(number=5, connection=connection, is_closed=False, _Channel__close_event=self.close_event)

    async def reject(self, requeue: bool) -> None:
        assert self.channel
        self.rejected.append(requeue)


def as_message(message: Delivered) -> AbstractIncomingMessage:
    return cast("AbstractIncomingMessage", message)


@pytest.mark.parametrize("tag", [1, 77, 2**40])
def test_ack_has_the_frame_of_the_library(tag: int) -> None:
    message = Delivered(tag)
    acknowledgements.ack(as_message(message))
    assert message.written == [marshal(Basic.Ack(tag, multiple=False), 5)]


async def test_requeue_rejects_the_message() -> None:
    message = Delivered(1)
    await acknowledgements.requeue(as_message(message))
    assert message.rejected == [True]


async def test_on_a_closed_channel_nothing_is_sent_or_raised() -> None:
    message = Delivered(1, closed=True)
    acknowledgements.ack(as_message(message))
    await acknowledgements.requeue(as_message(message))
    assert (message.written, message.rejected) == ([], [])
