"""The first check of a request: the host that it names, the site that it comes from, and the media type of its body.

Pages of other sites can make a browser send requests to this machine. Without API keys nothing else would refuse them: a page may point
its own host name at a loopback address (DNS rebinding), or post a form or plain text, which needs no CORS preflight.
"""

from collections.abc import Collection, Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.middleware.public_url import DEFAULT_PORTS, HOST
from gateway.middleware.sessions import is_console_path
from gateway.problems import HttpProblem, error_response
from gateway.settings import GatewaySettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FORM_MEDIA_TYPES = frozenset({"multipart/form-data", "application/x-www-form-urlencoded"})
PROBE_PATH = "/health"
"""Answered under any host name: probes of a load balancer use addresses."""


class OriginMiddleware:
    """`keys_needed`: whether callers need an API key. `form_paths`: whose bodies may be forms; those of the console's paths always are."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, keys_needed: bool, form_paths: Collection[str] = ()) -> None:
        self._app, self._keys_needed, self._form_paths = app, keys_needed, form_paths
        self._cors_origins = settings.cors_origins
        checked = bool(settings.allowed_hosts) or not keys_needed
        public = (settings.public_origin or "").rpartition("/")[2]
        hosts = (settings.host, f"[{settings.host}]", public, *settings.allowed_hosts)
        self._hosts = {host.lower() for host in hosts if host} if checked else {"*"}
        self._own_origins = (*self._cors_origins, *filter(None, [settings.public_origin]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope, Headers(scope=scope))
            except HttpProblem as problem:
                await error_response(scope, problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises HttpProblem(400, 403, 415, 421, 501)."""
        received: list[str] = scope.get("state", {}).get("received_hosts", [])
        hosts = [*headers.getlist("host"), *received]
        if scope["path"] != PROBE_PATH:
            self._check_hosts(hosts)
        if max(len(received), len(hosts) - len(received)) > 1 or not all(HOST.fullmatch(host) for host in hosts if host):
            raise HttpProblem(400, "host-malformed", "The request has more than one Host header, or one that is no `host` or `host:port`.")
        if scope["method"] in SAFE_METHODS or is_console_path(scope["path"]):  # The console checks its forms itself.
            return
        if not self._keys_needed and is_from_other_site(headers, self._own_origins):
            detail = "The request comes from a page of another site. GATEWAY_CORS_ORIGINS names the sites that may call."
            raise HttpProblem(403, "site-foreign", detail)
        if has_body(headers):
            check_encoding(headers)
            self._check_media_type(scope["path"], headers.get("content-type", ""))

    def _check_hosts(self, hosts: Iterable[str]) -> None:
        if "*" in self._hosts:
            return
        for host in hosts:
            name = host_name(host)
            if not (is_loopback_name(name) or {name, host.lower()} & self._hosts):
                detail = (
                    f"The host {host[:100]!r} is not served here. GATEWAY_ALLOWED_HOSTS and GATEWAY_PUBLIC_URL name others than loopback."
                )
                raise HttpProblem(421, "host-unknown", detail)

    def _check_media_type(self, path: str, content_type: str) -> None:
        media_type = media_type_of(content_type)
        if is_json_media_type(media_type) or (media_type in FORM_MEDIA_TYPES and path in self._form_paths):
            return
        allowed = "application/json or multipart/form-data" if path in self._form_paths else "application/json"
        sent = f"has the media type {media_type[:100]!r}" if media_type else "has no media type"
        raise HttpProblem(415, "media-type-unsupported", f"The body {sent}: send it with the header `Content-Type: {allowed}`.")


def check_encoding(headers: Headers) -> None:
    """Raises HttpProblem(415, 501) for a compressed body: how long it is when it is unpacked, nobody can know before."""
    encoding = headers.get("content-encoding", "")
    if encoding.strip().lower() not in ("", "identity"):
        detail = f"The body has the Content-Encoding {encoding[:100]!r}: send it as it is, without that header."
        raise HttpProblem(415, "content-encoding-unsupported", detail, {"Accept-Encoding": "identity"})
    if headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
        raise HttpProblem(501, "transfer-encoding-unsupported", "The only Transfer-Encoding that is read is `chunked`.")


def has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0 ") != ""


def media_type_of(content_type: str) -> str:
    """In lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_json_media_type(media_type: str) -> bool:
    """`media_type`: lower case, without parameters."""
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


def is_from_other_site(headers: Headers, allowed_origins: Collection[str] = ()) -> bool:
    """Whether a browser says that a page of another origin, except the allowed ones, causes the request. Other clients say nothing."""
    site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "")
    if site in ("same-origin", "none") or (origin and (origin in allowed_origins or "*" in allowed_origins)):
        return False
    if origin:
        scheme, _, name = origin.lower().partition("://")
        port = f":{DEFAULT_PORTS.get(scheme)}"
        return site != "" or name.removesuffix(port) != (headers.get("host") or "unknown").lower().removesuffix(port)
    return site != ""


def host_name(host: str) -> str:
    """The name of a Host header in lower case, without the port; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return (name if colon and (port.isdecimal() or not port) else host).lower().removesuffix(".")


def is_loopback_name(name: str) -> bool:
    """`localhost`, a name below it, or a loopback address: no page can point such a name at another machine."""
    try:
        return name == "localhost" or name.endswith(".localhost") or ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
