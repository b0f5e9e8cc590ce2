"""The door: who comes in, how often, with how large a body, and how many at once. All of it before the body is read.

Whoever leaves before the answer ends the work on it; a job that was accepted goes on.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.keys import Keys
from gateway.problems import Refused, answer
from gateway.rates import Rates
from gateway.settings import GatewaySettings

OPEN = frozenset({"/health", "/docs", "/redoc", "/openapi.json"})
"""Paths that need no key and are never turned away."""


class Body:
    """A request's body as it comes in, counted; afterwards, the news that the client has gone."""

    def __init__(self, receive: Receive, headers: Headers, limit: int) -> None:
        self._receive, self._limit, self._bytes = receive, limit, 0
        self._whole = asyncio.Event()
        self._gone = asyncio.Event()
        self._empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        if self._empty:
            self._whole.set()

    async def receive(self) -> Message:
        if self._empty:
            self._empty = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._whole.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limit:
            raise HTTPException(413, f"The body has more than the {self._limit} bytes allowed.")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._whole.set()
        return message

    async def gone(self) -> None:
        """Return when the client has left."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()


class Door:
    def __init__(self, app: ASGIApp, settings: GatewaySettings, keys: Keys) -> None:
        self._app, self._settings, self._keys = app, settings, keys
        self._rates = Rates(settings.rate_requests, settings.rate_seconds)
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        told: dict[str, str] = {}
        try:
            body = self._admit(scope, receive, told)
            with self._room():
                await while_there(self._app, scope, body, telling(send, told))
        except Refused as refused:
            refused.headers.update(told)
            await answer(scope["path"], refused)(scope, receive, send)

    def _admit(self, scope: Scope, receive: Receive, told: dict[str, str]) -> Body:
        """Raises Refused. What the caller is told of its rate goes into `told`."""
        headers = Headers(scope=scope)
        caller = self._caller(headers)
        scope.setdefault("state", {})["caller"] = caller
        address = (scope.get("client") or ("",))[0]
        rate = self._rates.take(caller or f"at {address}")
        told.update(rate.headers)
        if rate.retry_seconds is not None:
            raise Refused(429, "too many requests", "Your rate is used up.", {"Retry-After": str(rate.retry_seconds)})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._settings.max_body_bytes:
            raise Refused(413, "Content Too Large", f"The body has {length} bytes, {self._settings.max_body_bytes} are allowed.")
        return Body(receive, headers, self._settings.max_body_bytes)

    def _caller(self, headers: Headers) -> str | None:
        """The name that the key belongs to; None where no keys are needed."""
        if not self._keys.needed:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key") or (key.strip() if scheme.lower() == "bearer" else "")
        name = self._keys.name_of(key) if key else None
        if name is None:
            detail = "Send a known key as `Authorization: Bearer …` or `X-API-Key: …`."
            raise Refused(401, "Unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        return name

    @contextmanager
    def _room(self) -> Iterator[None]:
        if self._inside >= self._settings.max_requests:
            raise Refused(503, "busy", f"{self._inside} requests are in hand already.", {"Retry-After": "1"})
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


def telling(send: Send, told: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(told)
        await send(message)

    return sending


async def while_there(app: ASGIApp, scope: Scope, body: Body, send: Send) -> None:
    """Serve the request until it is answered or its client is gone."""
    work = asyncio.ensure_future(app(scope, body.receive, send))
    watch = asyncio.ensure_future(body.gone())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        left = not work.done() and work.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({work})
    if not (left and work.cancelled()):
        work.result()
