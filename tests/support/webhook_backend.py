"""A webhook backend for tests: a real HTTP server that records its requests and answers with configured responses."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

STATUS_OK = 200
OMIT_HEADER = "omitted"
"""The value of a header that is left out."""


@dataclass(frozen=True)
class RecordedRequest:
    method: str
    path: str
    headers: dict[str, str]
    body_bytes: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.body_bytes)


@dataclass
class WebhookBackend:
    """`responses` are given in turn, then 200. One is a status, a status with headers, or None: close without a response.

    Each request releases `request_semaphore`; with a `release_event` no response is given until it is set.
    """

    responses: list[int | tuple[int, dict[str, str]] | None] = field(default_factory=list)
    requests: list[RecordedRequest] = field(default_factory=list)
    release_event: asyncio.Event | None = None
    request_semaphore: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await read_request(reader))
            self.request_semaphore.release()
            if self.release_event:
                await self.release_event.wait()
            response = self.responses.pop(0) if self.responses else STATUS_OK
            if response is not None:
                writer.write(response_bytes(response))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @property
    def paths(self) -> list[str]:
        return [request.path.rpartition("/")[2] for request in self.requests]


async def read_request(reader: asyncio.StreamReader) -> RecordedRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return RecordedRequest(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


def response_bytes(response: int | tuple[int, dict[str, str]]) -> bytes:
    status, headers = (response, {}) if isinstance(response, int) else response
    body = b'{"success":true}' if status == STATUS_OK else b'{"error":"Generation not found"}'
    fields = {"Content-Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items() if value != OMIT_HEADER)]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def open_webhook_backend() -> AsyncIterator[WebhookBackend]:
    backend = WebhookBackend()
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    backend.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield backend
        if backend.release_event:
            backend.release_event.set()
