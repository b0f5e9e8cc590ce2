"""The gateway's application behind its own HTTP protocol on a free port, as `atelier gateway` serves it; and one request in raw bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from gateway.connections import ConnectionLimits
from gateway.http_protocol import bounded_protocol
from gateway.settings import GatewaySettings


@asynccontextmanager
async def serve_bounded(app: FastAPI, *, lifespan: bool = True) -> AsyncIterator[int]:
    """The port on 127.0.0.1. `lifespan`: False for an application whose services are there already."""
    limits = ConnectionLimits.from_settings(GatewaySettings(), 100)
    config = uvicorn.Config(
        app,
        port=0,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        lifespan="on" if lifespan else "off",
        http=bounded_protocol(limits),
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
        assert not serving.done(), "the server did not start"
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def send_raw(port: int, *pieces: bytes, seconds: float = 5) -> bytes:
    """All that the server answers until it closes the connection, or stays silent for a quarter of a second after an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02 if len(pieces) > 1 else 0)
        answer = await asyncio.wait_for(reader.read(1 << 16), seconds)
        while answer:
            try:
                more = await asyncio.wait_for(reader.read(1 << 16), 0.25)
            except TimeoutError:
                break
            if not more:
                break
            answer += more
        return answer
    finally:
        writer.close()
