"""The outermost middleware: the request as its client sent it, whatever proxies stand between them.

The client, the scheme and the host come from trusted proxies. A path loses the prefix of GATEWAY_ROOT_PATH, doubled slashes, and the slash
at its end. Redirects get the prefix on their way out, so that every other module knows only the gateway's own paths.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.middleware.addresses import parse_address
from gateway.middleware.forwarded import ForwardedRequest, TrustedProxies
from gateway.middleware.public_url import set_public_address
from gateway.settings import GatewaySettings

LOCATION_HEADERS = frozenset({b"location", b"content-location", b"hx-redirect", b"hx-location"})


class ProxyMiddleware:
    """`routes`: those of the gateway. Raises ValueError for a prefix that is the path of one."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, routes: Sequence[Route]) -> None:
        self._app, self._trusted = app, TrustedProxies(settings.trusted_proxies)
        self._origin, self._prefix = settings.public_origin, settings.public_prefix
        self._patterns = tuple(route.path_regex for route in routes)
        self._paths_with_slash = frozenset(route.path for route in routes if route.path.endswith("/"))
        if self._prefix and self._is_served(f"{self._prefix}/x"):
            raise ValueError(f"GATEWAY_ROOT_PATH: {self._prefix} is a path of the gateway itself: choose another one")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        forwarded = self._read_headers(scope)
        prefix = self._prefix if self._origin or self._prefix else forwarded.prefix
        apply_forwarded(scope, forwarded, self._origin)
        set_public_address(scope, self._origin, prefix)
        scope["path"] = self._own_path(scope["path"], prefix)
        await self._app(scope, receive, with_prefix(send, prefix) if prefix else send)

    def _read_headers(self, scope: Scope) -> ForwardedRequest:
        """Nothing when the connection is not a trusted proxy's."""
        client = scope.get("client")
        peer = parse_address(str(client[0])) if client and client[0] else None
        unknown = peer is None and bool(client and client[0])
        return ForwardedRequest() if unknown or peer not in self._trusted else self._trusted.read(Headers(scope=scope))

    def _own_path(self, path: str, prefix: str) -> str:
        """The path without the prefix, which a proxy may have left or stripped; and with single slashes, none at its end."""
        if "//" in path:
            path = "/" + "/".join(filter(None, path.split("/"))) + "/" * path.endswith("/")
        if path.endswith("/") and path not in self._paths_with_slash:
            path = path.rstrip("/") or "/"
        if prefix and f"{path}/".startswith(f"{prefix}/") and not self._is_served(path):
            path = path.removeprefix(prefix) or "/"
        return path

    def _is_served(self, path: str) -> bool:
        return any(pattern.match(path) for pattern in self._patterns)


def apply_forwarded(scope: Scope, forwarded: ForwardedRequest, public_origin: str | None) -> None:
    """Set client, scheme and Host header; the scheme of GATEWAY_PUBLIC_URL wins.

    The Host header that was received stays known: on the machine of a trusted proxy a page of another site can send any other header.
    """
    if forwarded.client:
        scope["client"] = (forwarded.client, 0)
    if scheme := public_origin.partition(":")[0] if public_origin else forwarded.scheme:
        scope["scheme"] = scheme
    if forwarded.host:
        scope.setdefault("state", {})["received_hosts"] = Headers(scope=scope).getlist("host")
        others = [pair for pair in scope["headers"] if pair[0] != b"host"]
        scope["headers"] = [(b"host", forwarded.host.encode()), *others]


def with_prefix(send: Send, prefix: str) -> Send:
    """Put the prefix before the paths in the headers of a response that redirect."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [(name, prefixed(name, value, prefix)) for name, value in message["headers"]]
        await send(message)

    return sending


def prefixed(name: bytes, value: bytes, prefix: str) -> bytes:
    is_path = value.startswith(b"/") and not value.startswith(b"//")
    return prefix.encode() + value if name.lower() in LOCATION_HEADERS and is_path else value
