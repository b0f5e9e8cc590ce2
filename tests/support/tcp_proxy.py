"""A TCP proxy on loopback that can delay, stall, half-open or abort its connections, or answer in place of the server."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class TcpProxy:
    """Forwards bytes to `port`.

    `delay_seconds` is added to each chunk. While `flow_enabled` is unset nothing is forwarded, and the connections stay open.
    `fixed_response` is sent to every client in place of the server's.
    """

    def __init__(self, port: int) -> None:
        self.target, self.port = port, 0
        self.delay_seconds = 0.0
        self.flow_enabled = asyncio.Event()
        self.flow_enabled.set()
        self.fixed_response: bytes | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._upstream_writers: set[asyncio.StreamWriter] = set()
        self._copy_tasks: set[asyncio.Task[None]] = set()
        self._half_open_writers: set[asyncio.StreamWriter] = set()

    def abort_connections(self) -> None:
        """Reset every connection."""
        for writer in self._writers | self._half_open_writers:
            writer.transport.abort()
        self._half_open_writers.clear()

    def half_open(self) -> None:
        """Drop the server side, as when its machine is switched off: clients notice nothing, and what they send is discarded."""
        self._half_open_writers |= self._writers - self._upstream_writers
        for writer in list(self._upstream_writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fixed_response is not None:
            await self.send_fixed_response(reader, writer, self.fixed_response)
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, upstream_writer}
        self._upstream_writers.add(upstream_writer)
        for copying in (self.copy_stream(reader, upstream_writer, writer), self.copy_stream(upstream_reader, writer, writer)):
            task = asyncio.create_task(copying)
            self._copy_tasks.add(task)
            task.add_done_callback(self._copy_tasks.discard)

    async def send_fixed_response(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, response: bytes) -> None:
        with suppress(OSError, TimeoutError):
            await reader.read(1 << 16)
            writer.write(response)
            await writer.drain()
            async with asyncio.timeout(1):
                while await reader.read(1 << 16):
                    pass
        writer.close()

    async def copy_stream(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, client: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await source.read(1 << 16):
                await self.flow_enabled.wait()
                await asyncio.sleep(self.delay_seconds)
                if client not in self._half_open_writers:
                    sink.write(chunk)
                    await sink.drain()
        self._writers.discard(sink)
        self._upstream_writers.discard(sink)
        if sink not in self._half_open_writers:
            sink.close()

    async def close(self) -> None:
        self.abort_connections()
        for task in list(self._copy_tasks):
            task.cancel()
        await asyncio.gather(*self._copy_tasks, return_exceptions=True)


@asynccontextmanager
async def open_proxy(port: int, ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[TcpProxy]:
    """A proxy in front of a local port. With `ssl_context`, clients connect with TLS."""
    proxy = TcpProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=ssl_context)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
