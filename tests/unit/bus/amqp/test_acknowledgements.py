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

    def __init__(self, tag: int, *, closed: bool = False, newest: int = 0) -> None:
        self.delivery_tag, self.closed, self.newest, self.rejected = tag, closed, newest, list[bool]()
        self.written, self.at_once = list[bytes](), list[bytes]()
        self.close_event = asyncio.Event()

    @property
    def channel(self) -> Any:
        if self.closed:
            raise ChannelInvalidStateError
        writer = SimpleNamespace(write=self.written.append, write_at_once=self.at_once.append)
        connection = SimpleNamespace(_transport_factory=SimpleNamespace(writer=writer))
        state = {"is_closed": False, "_Channel__close_event": self.close_event, "newest_delivery": self.newest}
        return SimpleNamespace(number=5, connection=connection, **state)

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


def test_ack_of_the_newest_delivery_waits_for_no_other() -> None:
    """Those of a batch are acknowledged in its order, so the last one takes the others with it; with one in flight each is the newest."""
    older, newest = Delivered(1, newest=2), Delivered(2, newest=2)
    acknowledgements.ack(as_message(older))
    acknowledgements.ack(as_message(newest))
    assert (len(older.written), older.at_once, newest.written, len(newest.at_once)) == (1, [], [], 1)


async def test_requeue_rejects_the_message() -> None:
    message = Delivered(1)
    await acknowledgements.requeue(as_message(message))
    assert message.rejected == [True]


async def test_on_a_closed_channel_nothing_is_sent_or_raised() -> None:
    message = Delivered(1, closed=True)
    acknowledgements.ack(as_message(message))
    await acknowledgements.requeue(as_message(message))
    assert (message.written, message.rejected) == ([], [])
