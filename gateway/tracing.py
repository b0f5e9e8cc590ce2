"""Names for a request: its id and its trace come in or are made here, go out, and travel with every message and log line.

The outermost layer: it also says one log line a request, sets the security headers, and turns a failure of ours into a document.
"""

import re
import secrets
import time
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from bus import metrics
from bus.tracing import answered, request_traced
from bus.travelling import travel_with
from contracts.wire import Header
from gateway.problems import answer, said

REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}")
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Set where the answer says nothing else."""
DOCS_POLICY = (
    b"default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    b"img-src data: https://fastapi.tiangolo.com; connect-src 'self'; frame-ancestors 'none'"
)
"""What the pages of /docs load."""

log = structlog.get_logger()


class Tracing:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope)
        with request_traced(names_of(given), given) as (names, span):
            await self._named(scope, receive, send, names, span)

    async def _named(self, scope: Scope, receive: Receive, send: Send, names: dict[str, str], span: Any) -> None:
        with travel_with(names), bound_contextvars(request_id=names[Header.REQUEST_ID], trace_id=names[Header.TRACEPARENT].split("-")[1]):
            await self._traced(scope, receive, send, names, span)

    async def _traced(self, scope: Scope, receive: Receive, send: Send, names: dict[str, str], span: Any) -> None:
        status, started = 0, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                adorn(message["headers"], scope, names)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            log.exception("request.failed", method=scope["method"], path=scope["path"])
            if not status:
                await answer(scope["path"], said(error))(scope, receive, sending)
        finally:
            seconds = round(time.perf_counter() - started, 4)
            metrics.answered(scope["method"], route_of(scope), status, seconds)
            answered(span, scope["method"], route_of(scope), status)
            log.info("request.answered", method=scope["method"], path=scope["path"], status=status, seconds=seconds)


def route_of(scope: Scope) -> str:
    """The pattern that the path fits, such as /v1/jobs/{job_id}; one word for all paths that fit none."""
    return str(getattr(scope.get("route"), "path", metrics.OTHER))


def names_of(headers: Headers) -> dict[str, str]:
    """The request's names as they stand on the wire. What is no proper name is replaced by one of ours."""
    given = headers.get("x-request-id", "")
    names = {Header.REQUEST_ID.value: given if REQUEST_ID.fullmatch(given) else str(uuid4())}
    trace = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    trace_id, flags = (trace[1], trace[2]) if trace else (secrets.token_hex(16), "00")
    names[Header.TRACEPARENT.value] = f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"
    if trace and (state := headers.get("tracestate")):
        names[Header.TRACESTATE.value] = state[:512]
    return names


def adorn(headers: list[tuple[bytes, bytes]], scope: Any, names: dict[str, str]) -> None:
    """Raw, as they go out: every answer passes here."""
    said = {name for name, _ in headers}
    headers.append((b"x-request-id", names[Header.REQUEST_ID.value].encode()))
    headers.append((b"traceparent", names[Header.TRACEPARENT.value].encode()))
    if scope["path"] in ("/docs", "/redoc") and b"content-security-policy" not in said:
        headers.append((b"content-security-policy", DOCS_POLICY))
        said.add(b"content-security-policy")
    headers.extend(pair for pair in SECURITY if pair[0] not in said)
    if scope.get("scheme") == "https":
        headers.append((b"strict-transport-security", b"max-age=31536000"))
