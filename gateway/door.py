"""The door: who comes in, how often, with how large a body, and how many at once. All of it before the body is read.

Whoever leaves before the answer ends the work on it; a job that was accepted goes on.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import admit
from gateway.console.sessions import PATH, Sessions
from gateway.keys import Keys
from gateway.problems import Refused, answer
from gateway.rates import Rates
from gateway.settings import GatewaySettings

OPEN = frozenset({"/health", "/docs", "/redoc", "/openapi.json", "/asyncapi", "/asyncapi.yaml"})
"""Paths that need no key and are never turned away."""

PATIENCE_SECONDS = 0.05
"""After so long a request is a wait, and its client is watched."""


UPLOADS = frozenset({"/vision", "/multimodal", "/v1/chat/completions"})
"""Paths whose bodies may hold two files as base64 beside the words, when they announce their length."""


def in_console(path: str) -> bool:
    return path == PATH or path.startswith(f"{PATH}/")


class Body:
    """A request's body as it comes in, counted; afterwards, the news that the client has gone."""

    def __init__(self, receive: Receive, headers: Headers, limit: int) -> None:
        self._receive, self._limit, self._bytes = receive, limit, 0
        self.length = length_of(headers)
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
    """`keyless`: paths that need no key though others do."""

    def __init__(
        self, app: ASGIApp, settings: GatewaySettings, keys: Keys, keyless: Collection[str] = (), sessions: Sessions | None = None
    ) -> None:
        self._app, self._settings, self._keys, self._keyless, self._sessions = app, settings, keys, keyless, sessions
        self._rates = Rates(settings.rate_requests, settings.rate_seconds)
        self._inside, self._theirs, self._uploads = 0, Counter[str | None](), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        told: dict[str, str] = {}
        try:
            body = self._admit(scope, receive, told)
            with self._room(scope["state"]["caller"]), self._room_for_files(body):
                await while_there(self._app, scope, body, telling(send, told))
        except Refused as refused:
            refused.headers = told | refused.headers
            await answer(scope["path"], refused)(scope, receive, send)

    def _admit(self, scope: Scope, receive: Receive, told: dict[str, str]) -> Body:
        """Raises Refused. What the caller is told of its rate goes into `told`."""
        headers = Headers(scope=scope)
        name = self._name_of(scope["path"], headers)
        admit(scope, name, operator=name in self._settings.operators)
        rate = self._rates.take(name or f"at {(scope.get('client') or ('',))[0]}")
        told.update(rate.headers)
        if rate.retry_seconds is not None:
            raise Refused(429, "too many requests", "Your rate is used up.", {"Retry-After": str(rate.retry_seconds)})
        most, length = self._most_bytes(scope["path"], headers), length_of(headers)
        if length > most:
            raise Refused(413, "Content Too Large", f"The body has {length} bytes, {most} are allowed.")
        return Body(receive, headers, most)

    def _most_bytes(self, path: str, headers: Headers) -> int:
        most, file = self._settings.max_body_bytes, self._settings.max_upload_bytes
        return most + 2 * (file * 4 // 3) if path in UPLOADS and length_of(headers) else most

    def _name_of(self, path: str, headers: Headers) -> str | None:
        if path in self._keyless:
            return None
        return self._visitor(headers) if in_console(path) else self._caller(headers)

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

    def _visitor(self, headers: Headers) -> str | None:
        """Whose session it is. The console itself sends a stranger to its login."""
        session = self._sessions.read(headers.get("cookie", "")) if self._sessions else None
        return session.name if session else None

    @contextmanager
    def _room(self, caller: str | None) -> Iterator[None]:
        """A place among the requests in hand, and among this caller's own: who waits a lot leaves room for the others."""
        if self._inside >= self._settings.max_requests:
            raise Refused(503, "busy", f"{self._inside} requests are in hand already.", {"Retry-After": "1"})
        if caller and self._theirs[caller] >= self._settings.tenant_requests:
            raise Refused(429, "too many at once", f"{self._theirs[caller]} of your requests are in hand already.", self._full)
        self._inside += 1
        self._theirs[caller] += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._theirs[caller] -= 1
            if not self._theirs[caller]:
                del self._theirs[caller]

    @property
    def _full(self) -> dict[str, str]:
        policy = f'"at-once";q={self._settings.tenant_requests};qu="concurrent-requests"'
        return {"RateLimit-Policy": policy, "RateLimit": '"at-once";r=0;t=1', "Retry-After": "1"}

    @contextmanager
    def _room_for_files(self, body: Body) -> Iterator[None]:
        """A place among the requests with large bodies, which are held in memory."""
        large = body.length > self._settings.max_body_bytes
        if large and self._uploads >= self._settings.max_uploads:
            raise Refused(503, "busy", f"{self._uploads} requests with large files are in hand already.", {"Retry-After": "1"})
        self._uploads += large
        try:
            yield
        finally:
            self._uploads -= large


def length_of(headers: Headers) -> int:
    """As announced; 0 when it is not."""
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def telling(send: Send, told: dict[str, str]) -> Send:
    raw = [(name.lower().encode(), value.encode()) for name, value in told.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"].extend(raw)
        await send(message)

    return sending


async def while_there(app: ASGIApp, scope: Scope, body: Body, send: Send) -> None:
    """Serve the request until it is answered or its client is gone. Most are answered before it is worth looking."""
    watch = Watch(body)
    timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, watch.begin)
    try:
        await app(scope, body.receive, send)
    except asyncio.CancelledError:
        if not watch.over():
            raise
    finally:
        timer.cancel()
        watch.end()


class Watch:
    """Looks whether the client of the current task's request is still there, and ends the task when it is not."""

    def __init__(self, body: Body) -> None:
        self._body, self._work, self._left = body, asyncio.current_task(), False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.ensure_future(self._look())

    def end(self) -> None:
        if self._task:
            self._task.cancel()

    def over(self) -> bool:
        """Whether it was this watch that ended the task; then nobody else need hear of it."""
        assert self._work is not None
        return self._left and not self._work.uncancel()

    async def _look(self) -> None:
        await self._body.gone()
        assert self._work is not None
        self._left = True
        self._work.cancel()
