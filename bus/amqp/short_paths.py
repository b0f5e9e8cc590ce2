"""Shorter ways through the client library for what every message needs, and where they replace those of the library (decision 20).

The library calls the socket once for each frame; a delivery takes five turns of the event loop from the socket to the callback.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from copy import copy
from functools import wraps
from typing import Any, cast

import aio_pika.queue
import aiormq.connection
from aio_pika.exceptions import ChannelInvalidStateError
from aiormq.abc import AbstractChannel
from aiormq.connection import FrameReceiver, TCPTransportFactory, TLSTransportFactory, TransportFactory

from bus.amqp.direct_channel import DirectChannel, deliver
from bus.amqp.frame_reader import DirectReader, read_frame

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class GatheringWriter(asyncio.StreamWriter):
    """Calls the socket once for all that is written in one turn of the event loop. What is written after an end is lost with the
    connection, and its channels end with an error.
    """

    _gathered: list[bytes]
    _has_ended = False

    def write(self, data: bytes) -> None:  # type: ignore[override] # frames are bytes
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self.flush)
        self._gathered.append(data)

    def write_at_once(self, data: bytes) -> None:
        """For what nothing else is expected to go with: it waits for no end of the turn."""
        self._gathered.append(data)
        self.flush()

    def flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered and not (self._has_ended or self.transport.is_closing()):
            super().write(b"".join(gathered) if len(gathered) > 1 else gathered[0])

    def writelines(self, data: Iterable[bytes]) -> None:  # type: ignore[override] # frames are bytes
        self.write(b"".join(data))

    async def drain(self) -> None:
        self.flush()
        await super().drain()

    def write_eof(self) -> None:
        self.flush()
        self._has_ended = True
        super().write_eof()

    def close(self) -> None:
        self.flush()
        self._has_ended = True
        super().close()


def use_short_paths() -> None:
    """For every connection of this process that is opened from now on, a user's own as well. Called wherever one is opened; the second
    call changes nothing.
    """
    if aio_pika.queue.consumer is not deliver:
        aio_pika.queue.consumer = deliver  # type: ignore[assignment] # it has other names
        aiormq.connection.Channel = DirectChannel  # type: ignore[attr-defined,assignment]
        FrameReceiver.get_frame = read_frame  # type: ignore[method-assign]
        for factory in (TCPTransportFactory, TLSTransportFactory):
            factory.create = _gathering(factory.create)  # type: ignore[method-assign,assignment]
        aiormq.connection.Connection.connect = _with_own_factory(aiormq.connection.Connection.connect)  # type: ignore[method-assign]


def writer_of(channel: AbstractChannel) -> GatheringWriter:
    """The writer of the channel's connection, to which the library's own frames go as well.

    Raises ChannelInvalidStateError for a channel that has ended, or whose end is under way: for the broker its number is free by then, and
    a frame on it would end the connection.
    """
    if channel.is_closed or channel._Channel__close_event.is_set():  # type: ignore[attr-defined]
        raise ChannelInvalidStateError(f"{channel!r} is closed")
    return cast("GatheringWriter", channel.connection._transport_factory.writer)  # type: ignore[attr-defined]


def _with_own_factory(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A user may open two connections with one factory, which has the streams of one: each connection gets a copy of it."""

    @wraps(original)
    async def connect(self: aiormq.connection.Connection, *arguments: Any, **options: Any) -> Any:
        self._transport_factory = copy(self._transport_factory)
        return await original(self, *arguments, **options)

    return connect


def _gathering(original: Callable[..., Awaitable[Streams]]) -> Callable[..., Awaitable[Streams]]:
    @wraps(original)
    async def create(self: TransportFactory, *arguments: Any, **options: Any) -> Streams:
        reader, writer = await original(self, *arguments, **options)
        writer.__class__ = GatheringWriter
        writer._gathered = []  # type: ignore[attr-defined]
        reader.__class__ = DirectReader
        self.reader, self.writer = reader, writer  # type: ignore[attr-defined]
        return reader, writer

    return create
