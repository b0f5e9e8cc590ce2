"""Names for a request: its id and its trace come in or are made here, go out, and travel with every message and log line.

The outermost layer: it also says one log line a request, sets the security headers, and turns a failure of ours into a document.
"""

import re
import secrets
import time
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from bus.travelling import travel_with
from contracts.wire import Header
from gateway.problems import answer, said

REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}")
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Set where the answer says nothing else."""
DOCS_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "img-src data: https://fastapi.tiangolo.com; connect-src 'self'; frame-ancestors 'none'"
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
        names = names_of(Headers(scope=scope))
        with travel_with(names), bound_contextvars(request_id=names[Header.REQUEST_ID], trace_id=names[Header.TRACEPARENT].split("-")[1]):
            await self._traced(scope, receive, send, names)

    async def _traced(self, scope: Scope, receive: Receive, send: Send, names: dict[str, str]) -> None:
        status, started = 0, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                adorn(MutableHeaders(scope=message), scope, names)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            log.exception("request.failed", method=scope["method"], path=scope["path"])
            if not status:
                await answer(scope["path"], said(error))(scope, receive, sending)
        finally:
            seconds = round(time.perf_counter() - started, 4)
            log.info("request.answered", method=scope["method"], path=scope["path"], status=status, seconds=seconds)


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


def adorn(headers: MutableHeaders, scope: Any, names: dict[str, str]) -> None:
    headers["X-Request-Id"] = names[Header.REQUEST_ID.value]
    headers["traceparent"] = names[Header.TRACEPARENT.value]
    if scope["path"] in ("/docs", "/redoc"):
        headers.setdefault("Content-Security-Policy", DOCS_POLICY)
    for name, value in SECURITY.items():
        headers.setdefault(name, value)
    if scope.get("scheme") == "https":
        headers.setdefault("Strict-Transport-Security", "max-age=31536000")
