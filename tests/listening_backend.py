"""A backend for the webhook tests: a real HTTP server that writes down what it hears and answers as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

OK = 200
UNSAID = "unsaid"
"""A header that is left out."""


@dataclass(frozen=True)
class Heard:
    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass
class Backend:
    """`answers` are given in turn, then 200 for ever. An answer is a status, a status with headers, or None: hang up without a word.

    Each request heard adds one to `arrived`; with `hold` no answer is given until it is set.
    """

    answers: list[int | tuple[int, dict[str, str]] | None] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    hold: asyncio.Event | None = None
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heard.append(await hear(reader))
            self.arrived.release()
            if self.hold:
                await self.hold.wait()
            answer = self.answers.pop(0) if self.answers else OK
            if answer is not None:
                writer.write(answer_bytes(answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @property
    def paths(self) -> list[str]:
        return [heard.path.rpartition("/")[2] for heard in self.heard]


async def hear(reader: asyncio.StreamReader) -> Heard:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Heard(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


def answer_bytes(answer: int | tuple[int, dict[str, str]]) -> bytes:
    status, headers = (answer, {}) if isinstance(answer, int) else answer
    body = b'{"success":true}' if status == OK else b'{"error":"Generation not found"}'
    told = {"Content-Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in told.items() if value != UNSAID)]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def open_backend() -> AsyncIterator[Backend]:
    backend = Backend()
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    backend.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield backend
        if backend.hold:
            backend.hold.set()
