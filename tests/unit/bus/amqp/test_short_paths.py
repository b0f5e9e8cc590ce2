"""`GatheringWriter`: what is written in one turn of the event loop goes to the socket at once, in its order, and before an end."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import aiormq
import pytest
from aiormq.connection import TCPTransportFactory
from yarl import URL

from bus.amqp.direct_channel import DirectChannel
from bus.amqp.short_paths import GatheringWriter, use_short_paths, writer_of


class Transport(asyncio.Transport):
    """Records the calls of a writer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes | str] = []

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls


@pytest.fixture
async def transport() -> Transport:
    return Transport()


@pytest.fixture
async def writer(transport: Transport) -> AsyncIterator[GatheringWriter]:
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    protocol.connection_made(transport)
    writer = asyncio.StreamWriter(transport, protocol, None, asyncio.get_running_loop())
    writer.__class__ = GatheringWriter
    gathering = cast("GatheringWriter", writer)
    gathering._gathered = []
    yield gathering
    gathering.close()


async def test_the_writes_of_a_turn_are_one_call(writer: GatheringWriter, transport: Transport) -> None:
    for data in (b"a", b"b", b"c"):
        writer.write(data)
    assert transport.calls == []
    await asyncio.sleep(0)
    writer.write(b"d")
    await asyncio.sleep(0)
    assert transport.calls == [b"abc", b"d"]


async def test_what_is_written_at_once_takes_what_waits_with_it(writer: GatheringWriter, transport: Transport) -> None:
    writer.write_at_once(b"a")
    assert transport.calls == [b"a"]
    writer.write(b"b")
    writer.write_at_once(b"c")
    assert transport.calls == [b"a", b"bc"]
    writer.write(b"d")
    await asyncio.sleep(0)
    assert transport.calls == [b"a", b"bc", b"d"]
    writer.close()
    writer.write_at_once(b"e")
    assert transport.calls == [b"a", b"bc", b"d", "close"]


async def test_drain_and_ends_are_after_what_was_written(writer: GatheringWriter, transport: Transport) -> None:
    writer.write(b"a")
    await writer.drain()
    assert transport.calls == [b"a"]
    writer.write(b"b")
    writer.write_eof()
    writer.write(b"c")
    writer.close()
    writer.write(b"d")
    await asyncio.sleep(0)
    await writer.drain()
    assert transport.calls == [b"a", b"b", "eof", "close"], "a transport refuses what is written after its end"


async def test_connections_with_one_factory_have_streams_of_their_own() -> None:
    """Else one would take the other's frames: a confirm of its broker would count for a message that has none."""
    use_short_paths()
    sockets = list[asyncio.StreamWriter]()
    async with await asyncio.start_server(lambda _, writer: sockets.append(writer), "127.0.0.1", 0) as server:
        url, factory = f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}/", TCPTransportFactory()
        connections = [aiormq.Connection(url, transport_factory=factory) for _ in range(2)]
        connecting = [asyncio.create_task(connection.connect()) for connection in connections]
        while len(sockets) < len(connections):
            await asyncio.sleep(0.005)
        for connection in connections:
            connection.connection_tune = cast("Any", SimpleNamespace(frame_max=131_072))
            connection.server_properties = {"capabilities": {"publisher_confirms": True}}
        first, second = (DirectChannel(connection, 1, frame_buffer=1) for connection in connections)
        streams = [cast("Any", connection._transport_factory) for connection in connections]
        assert [stream.reader.connection for stream in streams] == connections
        assert [writer_of(first), writer_of(second)] == [stream.writer for stream in streams]
        assert streams[0].writer is not streams[1].writer
        for task in connecting:
            task.cancel()
        await asyncio.wait(connecting)
        for writer in sockets:
            writer.close()


async def test_a_connection_has_a_gathering_writer() -> None:
    use_short_paths()
    use_short_paths()
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        factory = TCPTransportFactory()
        _, writer = await factory.create(URL(f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
        assert type(writer) is GatheringWriter
        assert factory.writer is writer  # type: ignore[attr-defined]
        writer.close()
        await writer.wait_closed()
    assert not hasattr(TCPTransportFactory.create.__wrapped__, "__wrapped__"), "it was replaced twice"  # type: ignore[attr-defined]
