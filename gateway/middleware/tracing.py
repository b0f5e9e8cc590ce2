"""The outermost middleware: the request id and trace context, security headers, one log line per request, unexpected errors.

Ids that the client does not send are created here. They are in the response, in every message and in every log line of the request.
"""

import re
import secrets
import time
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from bus.amqp.propagation import propagate_headers
from bus.observability import metrics
from bus.observability.tracing import set_response, trace_request
from contracts.wire import Header
from gateway.problems import error_response, to_problem

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}")
TRACEPARENT_PATTERN = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
MAX_LOGGED_PATH_CHARS = 512
"""Longer than any path of this gateway. The patterns that mask secrets in log lines see no more of it."""
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Added to a response that does not set them itself."""

log = structlog.get_logger()


class TracingMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        with trace_request(request_trace_headers(headers), headers) as (trace_headers, span):
            await self._with_context(scope, receive, send, trace_headers, span)

    async def _with_context(self, scope: Scope, receive: Receive, send: Send, trace_headers: dict[str, str], span: Any) -> None:
        trace_id = trace_headers[Header.TRACEPARENT].split("-")[1]
        bound = bind_contextvars(request_id=trace_headers[Header.REQUEST_ID], trace_id=trace_id)
        try:
            with propagate_headers(trace_headers):
                await self._serve(scope, receive, send, trace_headers, span)
        finally:
            reset_contextvars(**bound)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, trace_headers: dict[str, str], span: Any) -> None:
        status, started = 0, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                add_response_headers(message["headers"], scope, trace_headers)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            log.exception("request.failed", method=scope["method"], path=scope["path"][:MAX_LOGGED_PATH_CHARS])
            if not status:
                await error_response(scope, to_problem(error))(scope, receive, sending)
        finally:
            seconds = round(time.perf_counter() - started, 4)
            metrics.record_request(scope["method"], route_template(scope), status, seconds)
            set_response(span, scope, route_template(scope), status)
            log.info("request.answered", method=scope["method"], path=scope["path"][:MAX_LOGGED_PATH_CHARS], status=status, seconds=seconds)


def route_template(scope: Scope) -> str:
    """The path template, such as /jobs/{job_id}; OTHER_LABEL for all unknown paths."""
    return str(getattr(scope.get("route"), "path", metrics.OTHER_LABEL))


def request_trace_headers(headers: Headers) -> dict[str, str]:
    """The headers for the response and for messages. A missing or malformed id is replaced by a new one."""
    request_id = headers.get("x-request-id", "")
    trace_headers = {Header.REQUEST_ID.value: request_id if REQUEST_ID_PATTERN.fullmatch(request_id) else str(uuid4())}
    trace = TRACEPARENT_PATTERN.fullmatch(headers.get("traceparent", ""))
    trace_id, flags = (trace[1], trace[2]) if trace else (secrets.token_hex(16), "00")
    trace_headers[Header.TRACEPARENT.value] = f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"
    if trace and (state := headers.get("tracestate")):
        trace_headers[Header.TRACESTATE.value] = state[:512]
    return trace_headers


def add_response_headers(headers: list[tuple[bytes, bytes]], scope: Any, trace_headers: dict[str, str]) -> None:
    """Add the trace headers, and the security headers that are not set, to the raw headers of a response."""
    present = {name for name, _ in headers}
    headers.append((b"x-request-id", trace_headers[Header.REQUEST_ID.value].encode()))
    headers.append((b"traceparent", trace_headers[Header.TRACEPARENT.value].encode()))
    headers.extend(pair for pair in SECURITY_HEADERS if pair[0] not in present)
    if scope.get("scheme") == "https":
        headers.append((b"strict-transport-security", b"max-age=31536000"))
