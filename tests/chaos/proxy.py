"""A TCP proxy on loopback that can be slow, silent, half-open, refusing or cut."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Passes bytes on to `port`.

    `delay_seconds` is added to each chunk; while `flowing` is unset nothing moves, and nobody is told. `answer`: what is said to
    everybody who asks, in place of the part behind.
    """

    def __init__(self, port: int) -> None:
        self.target, self.port = port, 0
        self.delay_seconds = 0.0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.answer: bytes | None = None
        self._lines: set[asyncio.StreamWriter] = set()
        self._backs: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """End every connection at once, without a goodbye."""
        for line in self._lines | self._forgotten:
            line.transport.abort()
        self._forgotten.clear()

    def half_open(self) -> None:
        """The far end is gone, as after its machine was switched off; the near end is not told, and its words go nowhere."""
        self._forgotten |= self._lines - self._backs
        for line in list(self._backs):
            line.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.answer is not None:
            await self.refuse(reader, writer, self.answer)
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._lines |= {writer, back}
        self._backs.add(back)
        for pump in (self.pump(reader, back, writer), self.pump(there, writer, writer)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
        with suppress(OSError, TimeoutError):
            await reader.read(1 << 16)
            writer.write(answer)
            await writer.drain()
            async with asyncio.timeout(1):
                while await reader.read(1 << 16):
                    pass
        writer.close()

    async def pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, near: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await source.read(1 << 16):
                await self.flowing.wait()
                await asyncio.sleep(self.delay_seconds)
                if near not in self._forgotten:
                    sink.write(chunk)
                    await sink.drain()
        self._lines.discard(sink)
        self._backs.discard(sink)
        if sink not in self._forgotten:
            sink.close()

    async def close(self) -> None:
        self.cut()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)


@asynccontextmanager
async def open_proxy(port: int, shown: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    """`shown`: speak TLS at the near end."""
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=shown)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
