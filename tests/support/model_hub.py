"""A server of model weights on a real socket, which sends the bytes that a test says: pages, redirects, broken responses."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bus.errors import PermanentError
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings

Fetch = Callable[..., Awaitable[bytes]]
WEIGHTS = b"weights " * 100


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    fields = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1") + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(status, Location=location)


class Hub:
    """`pages`: the whole response by path and query; `heads`: the request of each connection."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Callable[[], bytes]] = {"/cdn/x?sig=a%2Bb%2F1": answer("200 OK", WEIGHTS)}
        self.heads: list[str] = []
        self.url = ""

    @property
    def paths(self) -> list[str]:
        return [head.split(" ")[1] for head in self.heads]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            path = head.split(" ")[1]
            page = self.pages[path] if path in self.pages else self.pages.get(path.partition("?")[0], answer("404 Not Found"))
            writer.write(page() if callable(page) else page)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def open_hub() -> AsyncIterator[Hub]:
    hub = Hub()
    server = await asyncio.start_server(hub.serve, "127.0.0.1", 0)
    hub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield hub
    finally:
        server.close()


async def fetch_asset(folder: Path, address: str, max_bytes: int = 100_000, **settings: Any) -> bytes:
    """As a step fetches it for a tenant, where loopback and plain HTTP are allowed."""
    rules: dict[str, Any] = {
        "store_url": (folder / "store").as_uri(),
        "allow_private_addresses": True,
        "allow_plain_http": True,
        "asset_timeout_seconds": 5.0,
    }
    async with open_claim_store(StoreSettings(**(rules | settings))) as claims:
        return await claims.fetch(address, tenant="shop", max_bytes=max_bytes)


async def refusal(fetch: Fetch, address: str, code: str = "asset-refused", **settings: Any) -> str:
    with pytest.raises(PermanentError) as raised:
        await fetch(address, **settings)
    assert raised.value.code == code, raised.value
    return str(raised.value)
