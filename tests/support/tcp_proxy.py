"""A TCP proxy on loopback that can be slow, silent, half-open, refusing or cut."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class TcpProxy:
    """Passes bytes on to `port`.

    `delay_seconds` is added to each chunk; while `flowing` is unset nothing moves, and nobody is told. `answer`: what is said to
    everybody who asks, in place of the part behind.
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
        """End every connection at once, without a goodbye."""
        for line in self._writers | self._half_open_writers:
            line.transport.abort()
        self._half_open_writers.clear()

    def half_open(self) -> None:
        """The far end is gone, as after its machine was switched off; the near end is not told, and its words go nowhere."""
        self._half_open_writers |= self._writers - self._upstream_writers
        for line in list(self._upstream_writers):
            line.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fixed_response is not None:
            await self.send_fixed_response(reader, writer, self.fixed_response)
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        self._upstream_writers.add(back)
        for pump in (self.copy_stream(reader, back, writer), self.copy_stream(there, writer, writer)):
            task = asyncio.create_task(pump)
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
        for pump in list(self._copy_tasks):
            pump.cancel()
        await asyncio.gather(*self._copy_tasks, return_exceptions=True)


@asynccontextmanager
async def open_proxy(port: int, ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[TcpProxy]:
    """`shown`: speak TLS at the near end."""
    proxy = TcpProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=ssl_context)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
