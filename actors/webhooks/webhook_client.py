"""The HTTP client of webhooks: the target of a call, and the meaning of its response.

An address in a message is used only if its host is on WEBHOOK_ALLOWED_HOSTS, and then it must be a public one.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from actors.settings import WebhookSettings
from actors.webhooks.signature import build_signature_headers
from actors.webhooks.webhook_request import WebhookRequest
from bus.errors import PermanentError, TemporaryError
from bus.masking import mask_text
from bus.net.addresses import redact_uri
from bus.net.ssrf import GuardedTransport, describe_http_error, has_private_ip_host, readable_host, url_origin
from bus.net.tls import create_ssl_context

ADDRESS_REFUSED, REJECTED, UNANSWERED = "webhook-address-refused", "webhook-rejected", "webhook-unanswered"
RETRYABLE_STATUSES = frozenset({408, 425, 429})
GATEWAY_TIMEOUT = 504
MAX_EXCERPT_CHARS = 300
MAX_EXCERPT_BYTES = 2000
"""More is read than shown, so that a secret in it is masked whole."""


@dataclass(frozen=True)
class Target:
    """A backend. `trusted`: its address is from the settings, and may be in a private network."""

    base: str
    trusted: bool


class UnconfirmedDelivery(TemporaryError):
    """The call was sent, at least partly, and it is unknown whether the backend accepted it."""


@dataclass(frozen=True)
class WebhookClient:
    """One HTTP client for trusted targets, and one that refuses private addresses; both set the same headers."""

    settings: WebhookSettings
    trusted_client: httpx.AsyncClient
    guarded_client: httpx.AsyncClient

    async def send(self, target: Target, outgoing: WebhookRequest, message_id: str) -> int:
        """Make the call; return the status of a response that accepts it.

        Raises PermanentError("webhook-rejected" · "webhook-address-refused"), UnconfirmedDelivery, and any other TemporaryError when the
        backend has certainly not accepted the call.
        """
        client, sent = (self.trusted_client if target.trusted else self.guarded_client), asyncio.Event()
        try:
            async with asyncio.timeout(self.settings.webhook_timeout_seconds):
                headers = self.build_headers(outgoing, message_id)
                request = client.build_request(
                    outgoing.method,
                    target.base + outgoing.path,
                    content=outgoing.body,
                    headers=headers,
                    extensions=track_request_sent(sent),
                )
                response = await client.send(request, stream=True)
                try:
                    return check_response(response.status_code, response.headers, await read_excerpt(response), target)
                finally:
                    await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            error_type = UnconfirmedDelivery if sent.is_set() else TemporaryError
            raise error_type(f"{redact_uri(target.base)} did not respond: {describe_http_error(error)}", code=UNANSWERED) from error

    def build_headers(self, outgoing: WebhookRequest, message_id: str) -> dict[str, str]:
        token, secret = self.settings.internal_api_token, self.settings.webhook_secret
        headers = {"Content-Type": "application/json", "X-Request-Source": self.settings.webhook_source, "User-Agent": "atelier"}
        if token:
            headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        return headers | build_signature_headers(message_id, int(time.time()), outgoing.body, secret.get_secret_value() if secret else None)


@asynccontextmanager
async def open_webhook_client(settings: WebhookSettings) -> AsyncIterator[WebhookClient]:
    """No connection is kept between calls: on one that the backend has closed meanwhile, a call's outcome would be unknown."""
    verify = create_ssl_context(settings.tls_ca_file)
    plain = httpx.AsyncHTTPTransport(verify=verify, limits=httpx.Limits(max_keepalive_connections=0))
    guard = GuardedTransport(settings, ADDRESS_REFUSED, verify=verify)
    timeout = settings.webhook_timeout_seconds
    async with (
        httpx.AsyncClient(transport=plain, timeout=timeout, trust_env=False, event_hooks={"response": [forget_location]}) as trusted,
        httpx.AsyncClient(transport=guard, timeout=timeout, trust_env=False, event_hooks={"response": [forget_location]}) as guarded,
    ):
        yield WebhookClient(settings, trusted, guarded)


async def forget_location(response: httpx.Response) -> None:
    """No redirect is followed, but the client would read its address, and raise an error for one that is not readable."""
    response.headers.pop("Location", None)


def resolve_target(base_url: str | None, settings: WebhookSettings) -> Target:
    """The backend to call: of an address in a message only its origin counts, so that a message chooses no path.

    Raises PermanentError("webhook-address-refused") without a backend, and for a private address in a message.
    """
    configured = settings.backend_api_url
    origin = parse_origin(base_url)
    if origin and is_allowed_host(origin, settings.webhook_allowed_hosts):
        return Target(origin, trusted=False)
    if (
        base_url
        and has_private_ip_host(base_url)
        and not settings.allow_private_addresses
        and readable_host(base_url) != readable_host(configured or "")
    ):
        message = f"The message names {redact_uri(base_url)}, a private address."
        raise PermanentError(ADDRESS_REFUSED, f"{message} WEBHOOK_ALLOWED_HOSTS and ATELIER_ALLOW_PRIVATE_ADDRESSES would allow it.")
    if configured:
        return Target(strip_webhook_path(configured), trusted=True)
    reason = f"{redact_uri(base_url)} is not on WEBHOOK_ALLOWED_HOSTS" if base_url else "The message names no backend"
    raise PermanentError(ADDRESS_REFUSED, f"{reason}, and BACKEND_API_URL is not set.")


def parse_origin(base_url: str | None) -> str | None:
    """None when it is not the address of an http or https server."""
    try:
        return url_origin(base_url) if base_url else None
    except ValueError:
        return None


def is_allowed_host(origin: str, allowed: tuple[str, ...]) -> bool:
    """Whether an entry names the host of an origin: `host` any port of it, `host:port` that one."""
    url = httpx.URL(origin)
    return any(url.host == readable_host(f"{url.scheme}://{entry}") and names_port(entry, url) for entry in allowed)


def names_port(entry: str, url: httpx.URL) -> bool:
    _, colon, port = entry.rpartition("]")[2].partition(":")
    return not colon or port == str(url.port or {"http": 80, "https": 443}[url.scheme])


def strip_webhook_path(url: str) -> str:
    """The base of a configured address that may include the path of one of the backend's webhooks."""
    return url.partition("/api/webhooks")[0].rstrip("/")


def check_response(status: int, headers: Mapping[str, str], excerpt: str, target: Target) -> int:
    """Returns a 2xx status. Raises the error that any other means; a redirect is a rejection, because it is not followed."""
    if 200 <= status < 300:
        return status
    message = f"{redact_uri(target.base)} answered {status}" + (f": {excerpt}" if excerpt else "")
    if status == GATEWAY_TIMEOUT:
        raise UnconfirmedDelivery(message, delay=parse_retry_after(headers), code=UNANSWERED)
    if status in RETRYABLE_STATUSES or status >= 500:
        raise TemporaryError(message, delay=parse_retry_after(headers), code=UNANSWERED)
    raise PermanentError(REJECTED, message)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a number or an HTTP date (RFC 9110, 10.2.3); None when the header is missing or invalid."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


async def read_excerpt(response: httpx.Response) -> str:
    """The beginning of an error response's body, in one line."""
    if response.is_success:
        return ""
    body = b""
    async for chunk in response.aiter_bytes(MAX_EXCERPT_BYTES):
        body += chunk
        if len(body) >= MAX_EXCERPT_BYTES:
            break
    return mask_text(" ".join(body[:MAX_EXCERPT_BYTES].decode("utf-8", "replace").split()))[:MAX_EXCERPT_CHARS]


def track_request_sent(sent: asyncio.Event) -> dict[str, Any]:
    """Sets `sent` when the request starts to leave: after an error from then on, the call's outcome is unknown."""

    async def trace(event: str, _: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            sent.set()

    return {"trace": trace}
