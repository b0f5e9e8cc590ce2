"""The whole way of a chat: a client, the gateway on a port, RabbitMQ, the text actor and its conversations, and a server for its model."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors import conversations, text
from bus.settings import BusSettings
from tests.support.broker_client import StartWorker
from tests.support.live_gateway import live_gateway
from tests.support.raw_openai_server import RawOpenAiServer, Respond, open_raw_server


@dataclass(frozen=True)
class TextProduct:
    """`http`: of the gateway. `server`: of the model."""

    http: httpx.AsyncClient
    server: RawOpenAiServer

    async def chat(self, content: Any = "hi", **fields: Any) -> httpx.Response:
        """`POST /v1/chat/completions`."""
        body = {"model": "text", "messages": [{"role": "user", "content": content}]} | fields
        return await self.http.post("/v1/chat/completions", json=body)

    async def generate(self, message: str = "hi", **fields: Any) -> httpx.Response:
        """`POST /generate`."""
        return await self.http.post("/generate", json={"message": message} | fields)


@asynccontextmanager
async def text_product(
    respond: Respond, monkeypatch: pytest.MonkeyPatch, start_worker: StartWorker, bus: BusSettings, store: Path
) -> AsyncIterator[TextProduct]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_raw_server(respond))
        for name, value in {"VLLM_SERVER_URL": server.url, "VLLM_MODEL": "m", "TEXT_PATIENCE_SECONDS": "5"}.items():
            monkeypatch.setenv(name, value)
        await stack.enter_async_context(start_worker(*text.ACTORS, *conversations.ACTORS))
        url = await stack.enter_async_context(live_gateway(bus, store, request_seconds=15))
        yield TextProduct(await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30)), server)
