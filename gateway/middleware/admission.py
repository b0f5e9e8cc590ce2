"""Admission of a request: API key or session, rate, body size, concurrency and memory are checked before its body is read.

What a request holds (a slot, bytes of the memory for bodies or files) it holds until its response has been sent.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import set_caller
from gateway.docs.swagger_ui import ASSET_PATHS, DOCS_PATH
from gateway.memory_budget import MemoryBudget, Reservation
from gateway.middleware.addresses import address_of
from gateway.middleware.api_keys import ApiKeys
from gateway.middleware.body import LimitedBody, content_length
from gateway.middleware.disconnect import cancel_on_disconnect
from gateway.middleware.rate_limit import RateLimiter, count_failure
from gateway.middleware.sessions import Sessions, is_console_path
from gateway.problems import HttpProblem, error_response
from gateway.settings import GatewaySettings

HEALTH_PATH = "/health"
"""Needs no key and has no limits, so that a load balancer sees the gateway's state whatever else is requested."""
DOCUMENT_PATHS = frozenset({DOCS_PATH, "/redoc", "/openapi.json", "/asyncapi", "/asyncapi.yaml", *ASSET_PATHS})
"""Paths that need no key."""
ANONYMOUS_BODY_BYTES = 16 << 10
"""The longest body without a valid key: a login."""
SMALL_BODY_BYTES = 64 << 10
"""A body up to this size is held whatever else is; the number of requests bounds how many there are."""


class AdmissionMiddleware:
    """`keyless`: further paths that need no key. `sessions`: authenticates the console; None without one.

    `upload_paths`: a body may hold two files of MAX_UPLOAD_BYTES as base64 besides GATEWAY_MAX_BODY_BYTES.
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
        self._slots = Slots(settings.max_requests, settings.tenant_requests)
        self._anonymous_slots = Slots(settings.anonymous_requests, settings.anonymous_requests // 4)
        self._uploads_in_flight = 0
        self._body_memory = MemoryBudget(max(settings.body_memory_bytes, 2 * settings.max_upload_body_bytes), "bodies")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == HEALTH_PATH or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        rate_headers: dict[str, str] = {}
        with ExitStack() as guards:
            scope.setdefault("state", {})["guards"] = guards
            try:
                body = self._admit(scope, receive, rate_headers)
                self._take_slots(guards, scope, body)
                await self._reserve_memory(guards, scope, body)
                await cancel_on_disconnect(self._app, scope, body, send_with_headers(send, rate_headers))
            except HttpProblem as problem:
                problem.headers = rate_headers | problem.headers
                await error_response(scope, problem)(scope, receive, send)

    def _admit(self, scope: Scope, receive: Receive, rate_headers: dict[str, str]) -> LimitedBody:
        """Adds the RateLimit headers of the response to `rate_headers`. Raises HttpProblem(401, 413, 429)."""
        headers = Headers(scope=scope)
        try:
            name = self._authenticate(scope["path"], headers)
        except HttpProblem as refusal:
            self._take_rate(f"at {address_of(scope)}", rate_headers)
            raise count_failure(self._keys.failures, address_of(scope), refusal) from None
        set_caller(scope, name, operator=not self._keys.needed or name in self._settings.operators)
        self._take_rate(name or f"at {address_of(scope)}", rate_headers)
        limit, length = self._body_limit(scope), content_length(headers)
        if length > limit:
            raise HttpProblem(413, "Content Too Large", f"The body has {length} bytes, {limit} are allowed.")
        return LimitedBody(receive, headers, limit)

    def _take_rate(self, caller: str, rate_headers: dict[str, str]) -> None:
        """Raises HttpProblem(429)."""
        rate = self._rate_limiter.take(caller)
        rate_headers.update(rate.headers)
        if rate.retry_after_seconds is not None:
            raise HttpProblem(429, "too many requests", "The rate limit is exceeded.", {"Retry-After": str(rate.retry_after_seconds)})

    def _is_anonymous(self, scope: Scope) -> bool:
        """Whether a key is needed on other paths, but this request has none: the login page, or the documents."""
        return self._keys.needed and scope["state"]["caller"] is None and scope["path"] not in self._keyless

    def _body_limit(self, scope: Scope) -> int:
        if self._is_anonymous(scope):
            return min(ANONYMOUS_BODY_BYTES, self._settings.max_body_bytes)
        takes_files = scope["path"] in self._upload_paths
        return self._settings.max_upload_body_bytes if takes_files else self._settings.max_body_bytes

    def _authenticate(self, path: str, headers: Headers) -> str | None:
        if path in self._keyless or path in DOCUMENT_PATHS:
            return None
        if self._sessions and is_console_path(path):
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

    def _take_slots(self, guards: ExitStack, scope: Scope, body: LimitedBody) -> None:
        """Anonymous requests have slots of their own: they take none from callers with a key. Raises HttpProblem(429, 503)."""
        if self._is_anonymous(scope):
            guards.enter_context(self._anonymous_slots.take(f"at {address_of(scope)}"))
        else:
            guards.enter_context(self._slots.take(scope["state"]["caller"]))
        if body.content_length > self._settings.max_body_bytes:
            guards.enter_context(self._upload_slot())

    async def _reserve_memory(self, guards: ExitStack, scope: Scope, body: LimitedBody) -> None:
        """The bytes of a body until its request is answered; without a Content-Length, those of `_grow`. Raises HttpProblem(503)."""
        declared = body.content_length if body.content_length > SMALL_BODY_BYTES else 0
        if not declared and not body.is_chunked:
            return
        reservation = await self._body_memory.reserve(scope["state"]["caller"], declared)
        guards.callback(reservation.release)
        body.on_complete = lambda size: reservation.resize(size if size > SMALL_BODY_BYTES else 0)
        if body.is_chunked:
            body.on_growth = partial(self._grow, guards, reservation, body.limit)

    async def _grow(self, guards: ExitStack, reservation: Reservation, limit: int, before: int, size: int) -> None:
        """When `size` bytes have arrived: memory for GATEWAY_MAX_BODY_BYTES; above that, a slot and memory for the longest body, `limit`.

        The memory for a large body is free before it starts, so that large bodies do not wait for each other halfway.
        Raises HTTPException(503), which routes let through.
        """
        largest_small = self._settings.max_body_bytes
        try:
            if before <= largest_small < size:
                guards.enter_context(self._upload_slot())
            if size > max(SMALL_BODY_BYTES, reservation.count):
                await reservation.grow(min(limit, largest_small) if size <= largest_small else limit)
        except HttpProblem as problem:
            raise HTTPException(problem.status, problem.detail, problem.headers) from None

    @contextmanager
    def _upload_slot(self) -> Iterator[None]:
        """A slot among the requests with bodies above GATEWAY_MAX_BODY_BYTES, which are held in memory. Raises HttpProblem(503)."""
        if self._uploads_in_flight >= self._settings.max_uploads:
            detail = f"{self._uploads_in_flight} requests with large files are in progress already."
            raise HttpProblem(503, "busy", detail, {"Retry-After": "1"})
        self._uploads_in_flight += 1
        try:
            yield
        finally:
            self._uploads_in_flight -= 1


class Slots:
    """Concurrent requests: how many there may be, and how many of one caller."""

    def __init__(self, limit: int, caller_limit: int) -> None:
        self._limit, self._caller_limit = limit, caller_limit
        self._in_flight, self._in_flight_by_caller = 0, Counter[str | None]()

    @contextmanager
    def take(self, caller: str | None) -> Iterator[None]:
        """A slot among all concurrent requests, and among those of this caller. Raises HttpProblem(429, 503)."""
        if self._in_flight >= self._limit:
            raise HttpProblem(503, "busy", f"{self._in_flight} requests are in progress already.", {"Retry-After": "1"})
        if caller and self._in_flight_by_caller[caller] >= self._caller_limit:
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
        policy = f'"at-once";q={self._caller_limit};qu="concurrent-requests"'
        return {"RateLimit-Policy": policy, "RateLimit": '"at-once";r=0;t=1', "Retry-After": "1"}


def send_with_headers(send: Send, extra_headers: dict[str, str]) -> Send:
    encoded = [(name.lower().encode(), value.encode()) for name, value in extra_headers.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"].extend(encoded)
        await send(message)

    return sending
