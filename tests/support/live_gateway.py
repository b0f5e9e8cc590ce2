"""A gateway on a TCP port, for clients with an HTTP stack of their own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI

from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from gateway.app import create_app
from gateway.settings import GatewaySettings


@asynccontextmanager
async def live_gateway(bus: BusSettings, store: Path, **settings: Any) -> AsyncIterator[str]:
    """Serve the gateway: its URL."""
    async with serve_app(create_app(bus, GatewaySettings.model_validate(settings), StoreSettings(store_url=store.as_uri()))) as url:
        yield url


@asynccontextmanager
async def serve_app(app: FastAPI) -> AsyncIterator[str]:
    """Serve an application on a free port: its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
        assert not serving.done(), "the server did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def official_client(url: str, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    """The official client with a base URL and a key, and no other change."""
    async with AsyncOpenAI(**{"base_url": f"{url}/v1", "api_key": "any", "max_retries": 0} | options) as client:
        yield client
