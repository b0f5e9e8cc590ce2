"""A request body with a size limit, which also reports that its client has disconnected."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive


class LimitedBody:
    """Counts the bytes that the application receives. Once the body is complete, it waits for the disconnect of the client.

    `is_chunked`: its size is not declared. Then `on_growth` is awaited with the sizes before and after a piece, before the application
    gets it; it may raise HTTPException. `on_complete` is called with the size.
    """

    def __init__(self, receive: Receive, headers: Headers, limit: int) -> None:
        self._receive, self.limit, self._bytes = receive, limit, 0
        self.content_length = content_length(headers)
        self.is_chunked = "transfer-encoding" in headers and not self.content_length
        self.on_growth: Callable[[int, int], Awaitable[None]] | None = None
        self.on_complete: Callable[[int], None] = lambda _: None
        self._complete = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._empty_body_pending = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        if self._empty_body_pending:
            self._complete.set()

    async def receive(self) -> Message:
        """The ASGI `receive` of the application. Raises HTTPException(413) above the limit."""
        if self._empty_body_pending:
            self._empty_body_pending = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._complete.is_set():
            await self._disconnected.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        before, self._bytes = self._bytes, self._bytes + len(message.get("body", b""))
        if self._bytes > self.limit:
            raise HTTPException(413, f"The body has more than the {self.limit} bytes that are allowed.")
        if self.on_growth and self._bytes > before:
            await self.on_growth(before, self._bytes)
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._complete.set()
            self.on_complete(self._bytes)
        return message

    async def wait_for_disconnect(self) -> None:
        """Return when the client has disconnected."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._disconnected.set()


def content_length(headers: Headers) -> int:
    """0 when the client sends none."""
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0
