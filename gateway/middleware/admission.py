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

from gateway.callers import set_caller
from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.rate_limit import RateLimiter
from gateway.middleware.sessions import CONSOLE_PATH, Sessions
from gateway.problems import HttpProblem, error_response
from gateway.settings import GatewaySettings

EXEMPT_PATHS = frozenset({"/health", "/docs", "/redoc", "/openapi.json", "/asyncapi", "/asyncapi.yaml"})
"""Paths that need no key and are never turned away."""

DISCONNECT_WATCH_DELAY_SECONDS = 0.05
"""After so long a request is a wait, and its client is watched."""


UPLOAD_PATHS = frozenset({"/vision", "/multimodal", "/v1/chat/completions"})
"""Paths whose bodies may hold two files as base64 beside the words, when they announce their length."""


def is_console_path(path: str) -> bool:
    return path == CONSOLE_PATH or path.startswith(f"{CONSOLE_PATH}/")


class LimitedBody:
    """A request's body as it comes in, counted; afterwards, the news that the client has gone."""

    def __init__(self, receive: Receive, headers: Headers, limit: int) -> None:
        self._receive, self._limit, self._bytes = receive, limit, 0
        self.content_length = announced_length(headers)
        self._complete = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        if self._empty:
            self._complete.set()

    async def receive(self) -> Message:
        if self._empty:
            self._empty = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._complete.is_set():
            await self._disconnected.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limit:
            raise HTTPException(413, f"The body has more than the {self._limit} bytes allowed.")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._complete.set()
        return message

    async def wait_for_disconnect(self) -> None:
        """Return when the client has left."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._disconnected.set()


class AdmissionMiddleware:
    """`keyless`: paths that need no key though others do."""

    def __init__(
        self, app: ASGIApp, settings: GatewaySettings, keys: ApiKeys, keyless: Collection[str] = (), sessions: Sessions | None = None
    ) -> None:
        self._app, self._settings, self._keys, self._keyless, self._sessions = app, settings, keys, keyless, sessions
        self._rate_limiter = RateLimiter(settings.rate_requests, settings.rate_seconds)
        self._in_flight, self._in_flight_by_caller, self._uploads_in_flight = 0, Counter[str | None](), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in EXEMPT_PATHS or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        told: dict[str, str] = {}
        try:
            body = self._admit(scope, receive, told)
            with self._concurrency_slot(scope["state"]["caller"]), self._upload_slot(body):
                await cancel_on_disconnect(self._app, scope, body, send_with_headers(send, told))
        except HttpProblem as refused:
            refused.headers = told | refused.headers
            await error_response(scope["path"], refused)(scope, receive, send)

    def _admit(self, scope: Scope, receive: Receive, rate_headers: dict[str, str]) -> LimitedBody:
        """Raises Refused. What the caller is told of its rate goes into `told`."""
        headers = Headers(scope=scope)
        name = self._authenticate(scope["path"], headers)
        set_caller(scope, name, operator=name in self._settings.operators)
        rate = self._rate_limiter.take(name or f"at {(scope.get('client') or ('',))[0]}")
        rate_headers.update(rate.headers)
        if rate.retry_after_seconds is not None:
            raise HttpProblem(429, "too many requests", "Your rate is used up.", {"Retry-After": str(rate.retry_after_seconds)})
        most, length = self._body_limit(scope["path"], headers), announced_length(headers)
        if length > most:
            raise HttpProblem(413, "Content Too Large", f"The body has {length} bytes, {most} are allowed.")
        return LimitedBody(receive, headers, most)

    def _body_limit(self, path: str, headers: Headers) -> int:
        most, file = self._settings.max_body_bytes, self._settings.max_upload_bytes
        return most + 2 * (file * 4 // 3) if path in UPLOAD_PATHS and announced_length(headers) else most

    def _authenticate(self, path: str, headers: Headers) -> str | None:
        if path in self._keyless:
            return None
        return self._caller_by_session(headers) if is_console_path(path) else self._caller_by_key(headers)

    def _caller_by_key(self, headers: Headers) -> str | None:
        """The name that the key belongs to; None where no keys are needed."""
        if not self._keys.needed:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key") or (key.strip() if scheme.lower() == "bearer" else "")
        name = self._keys.name_of(key) if key else None
        if name is None:
            detail = "Send a known key as `Authorization: Bearer …` or `X-API-Key: …`."
            raise HttpProblem(401, "Unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        return name

    def _caller_by_session(self, headers: Headers) -> str | None:
        """Whose session it is. The console itself sends a stranger to its login."""
        session = self._sessions.read_cookie(headers.get("cookie", "")) if self._sessions else None
        return session.key_name if session else None

    @contextmanager
    def _concurrency_slot(self, caller: str | None) -> Iterator[None]:
        """A place among the requests in hand, and among this caller's own: who waits a lot leaves room for the others."""
        if self._in_flight >= self._settings.max_requests:
            raise HttpProblem(503, "busy", f"{self._in_flight} requests are in hand already.", {"Retry-After": "1"})
        if caller and self._in_flight_by_caller[caller] >= self._settings.tenant_requests:
            raise HttpProblem(
                429,
                "too many at once",
                f"{self._in_flight_by_caller[caller]} of your requests are in hand already.",
                self._concurrency_headers,
            )
        self._in_flight += 1
        self._in_flight_by_caller[caller] += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            self._in_flight_by_caller[caller] -= 1
            if not self._in_flight_by_caller[caller]:
                del self._in_flight_by_caller[caller]

    @property
    def _concurrency_headers(self) -> dict[str, str]:
        policy = f'"at-once";q={self._settings.tenant_requests};qu="concurrent-requests"'
        return {"RateLimit-Policy": policy, "RateLimit": '"at-once";r=0;t=1', "Retry-After": "1"}

    @contextmanager
    def _upload_slot(self, body: LimitedBody) -> Iterator[None]:
        """A place among the requests with large bodies, which are held in memory."""
        large = body.content_length > self._settings.max_body_bytes
        if large and self._uploads_in_flight >= self._settings.max_uploads:
            raise HttpProblem(
                503, "busy", f"{self._uploads_in_flight} requests with large files are in hand already.", {"Retry-After": "1"}
            )
        self._uploads_in_flight += large
        try:
            yield
        finally:
            self._uploads_in_flight -= large


def announced_length(headers: Headers) -> int:
    """As announced; 0 when it is not."""
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def send_with_headers(send: Send, extra_headers: dict[str, str]) -> Send:
    raw = [(name.lower().encode(), value.encode()) for name, value in extra_headers.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"].extend(raw)
        await send(message)

    return sending


async def cancel_on_disconnect(app: ASGIApp, scope: Scope, body: LimitedBody, send: Send) -> None:
    """Serve the request until it is answered or its client is gone. Most are answered before it is worth looking."""
    watch = DisconnectWatcher(body)
    timer = asyncio.get_running_loop().call_later(DISCONNECT_WATCH_DELAY_SECONDS, watch.start)
    try:
        await app(scope, body.receive, send)
    except asyncio.CancelledError:
        if not watch.absorb_cancellation():
            raise
    finally:
        timer.cancel()
        watch.stop()


class DisconnectWatcher:
    """Looks whether the client of the current task's request is still there, and ends the task when it is not."""

    def __init__(self, body: LimitedBody) -> None:
        self._body, self._request_task, self._disconnected = body, asyncio.current_task(), False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._cancel_when_disconnected())

    def stop(self) -> None:
        if self._task:
            self._task.cancel()

    def absorb_cancellation(self) -> bool:
        """Whether it was this watch that ended the task; then nobody else need hear of it."""
        assert self._request_task is not None
        return self._disconnected and not self._request_task.uncancel()

    async def _cancel_when_disconnected(self) -> None:
        await self._body.wait_for_disconnect()
        assert self._request_task is not None
        self._disconnected = True
        self._request_task.cancel()
