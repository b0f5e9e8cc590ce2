"""Admission of a request: API key or session, rate, body size and concurrency are checked before its body is read."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import set_caller
from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.body import LimitedBody, content_length
from gateway.middleware.disconnect import cancel_on_disconnect
from gateway.middleware.rate_limit import RateLimiter
from gateway.middleware.sessions import CONSOLE_PATH, Sessions
from gateway.problems import HttpProblem, error_response
from gateway.settings import GatewaySettings

EXEMPT_PATHS = frozenset({"/health", "/docs", "/redoc", "/openapi.json", "/asyncapi", "/asyncapi.yaml"})
"""Paths that need no key and have no limits."""


class AdmissionMiddleware:
    """`keyless`: further paths that need no key. `sessions`: authenticates the console; None without one.

    `upload_paths`: a body with a Content-Length may hold two base64 files of MAX_UPLOAD_BYTES besides GATEWAY_MAX_BODY_BYTES.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: GatewaySettings,
        keys: ApiKeys,
        keyless: Collection[str] = (),
        sessions: Sessions | None = None,
        upload_paths: Collection[str] = (),
    ) -> None:
        self._app, self._settings, self._keys, self._sessions = app, settings, keys, sessions
        self._keyless, self._upload_paths = keyless, upload_paths
        self._rate_limiter = RateLimiter(settings.rate_requests, settings.rate_seconds)
        self._in_flight, self._in_flight_by_caller, self._uploads_in_flight = 0, Counter[str | None](), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in EXEMPT_PATHS or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        rate_headers: dict[str, str] = {}
        try:
            body = self._admit(scope, receive, rate_headers)
            with self._concurrency_slot(scope["state"]["caller"]), self._upload_slot(body):
                await cancel_on_disconnect(self._app, scope, body, send_with_headers(send, rate_headers))
        except HttpProblem as problem:
            problem.headers = rate_headers | problem.headers
            await error_response(scope, problem)(scope, receive, send)

    def _admit(self, scope: Scope, receive: Receive, rate_headers: dict[str, str]) -> LimitedBody:
        """Adds the RateLimit headers of the response to `rate_headers`. Raises HttpProblem(401, 413, 429)."""
        headers = Headers(scope=scope)
        name = self._authenticate(scope["path"], headers)
        set_caller(scope, name, operator=name in self._settings.operators)
        rate = self._rate_limiter.take(name or f"at {(scope.get('client') or ('',))[0]}")
        rate_headers.update(rate.headers)
        if rate.retry_after_seconds is not None:
            raise HttpProblem(429, "too many requests", "The rate limit is exceeded.", {"Retry-After": str(rate.retry_after_seconds)})
        limit, length = self._body_limit(scope["path"], headers), content_length(headers)
        if length > limit:
            raise HttpProblem(413, "Content Too Large", f"The body has {length} bytes, {limit} are allowed.")
        return LimitedBody(receive, headers, limit)

    def _body_limit(self, path: str, headers: Headers) -> int:
        limit, file_limit = self._settings.max_body_bytes, self._settings.max_upload_bytes
        return limit + 2 * (file_limit * 4 // 3) if path in self._upload_paths and content_length(headers) else limit

    def _authenticate(self, path: str, headers: Headers) -> str | None:
        if path in self._keyless:
            return None
        if self._sessions and (path == CONSOLE_PATH or path.startswith(f"{CONSOLE_PATH}/")):
            session = self._sessions.read_cookie(headers.get("cookie", ""))  # Without one, the console redirects to its login.
            return session.key_name if session else None
        return self._caller_by_key(headers)

    def _caller_by_key(self, headers: Headers) -> str | None:
        """The name of the key; None where no key is needed. Raises HttpProblem(401)."""
        if not self._keys.needed:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key") or (key.strip() if scheme.lower() == "bearer" else "")
        name = self._keys.name_of(key) if key else None
        if name is None:
            detail = "Send a known key as `Authorization: Bearer …` or `X-API-Key: …`."
            raise HttpProblem(401, "Unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        return name

    @contextmanager
    def _concurrency_slot(self, caller: str | None) -> Iterator[None]:
        """A slot among all concurrent requests, and among those of this caller. Raises HttpProblem(429, 503)."""
        if self._in_flight >= self._settings.max_requests:
            raise HttpProblem(503, "busy", f"{self._in_flight} requests are in progress already.", {"Retry-After": "1"})
        if caller and self._in_flight_by_caller[caller] >= self._settings.tenant_requests:
            detail = f"{self._in_flight_by_caller[caller]} of your requests are in progress already."
            raise HttpProblem(429, "too many at once", detail, self._concurrency_headers)
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
        """A slot among the requests with large bodies, which are held in memory. Raises HttpProblem(503)."""
        large = body.content_length > self._settings.max_body_bytes
        if large and self._uploads_in_flight >= self._settings.max_uploads:
            detail = f"{self._uploads_in_flight} requests with large files are in progress already."
            raise HttpProblem(503, "busy", detail, {"Retry-After": "1"})
        self._uploads_in_flight += large
        try:
            yield
        finally:
            self._uploads_in_flight -= large


def send_with_headers(send: Send, extra_headers: dict[str, str]) -> Send:
    encoded = [(name.lower().encode(), value.encode()) for name, value in extra_headers.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"].extend(encoded)
        await send(message)

    return sending
