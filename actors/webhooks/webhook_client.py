"""Where a call goes and what its answer means.

An address that came in a message counts only if its host is on WEBHOOK_ALLOWED_HOSTS, and then it must be on the public internet.
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
from actors.webhooks.webhook_request import WebhookRequest, build_signature_headers
from bus.errors import PermanentError, TemporaryError
from bus.net.ssrf import GuardedTransport, has_private_ip_host, redact_url
from bus.net.tls import create_ssl_context

ADDRESS_REFUSED, REJECTED, UNANSWERED = "webhook-address-refused", "webhook-rejected", "webhook-unanswered"
RETRYABLE_STATUSES = frozenset({408, 425, 429})
GATEWAY_TIMEOUT = 504
MAX_EXCERPT_BYTES = 300


@dataclass(frozen=True)
class Target:
    """A backend. `trusted`: its address stands in the settings, and may lie in a private network."""

    base: str
    trusted: bool


class UnconfirmedDelivery(TemporaryError):
    """The call was sent, at least in part, and whether the backend took it is not known."""


@dataclass(frozen=True)
class WebhookClient:
    """The two ways out, and what is written on every call."""

    settings: WebhookSettings
    trusted_client: httpx.AsyncClient
    guarded_client: httpx.AsyncClient

    async def send(self, target: Target, outgoing: WebhookRequest, message_id: str) -> int:
        """Make the call; return the status of an answer that accepts it.

        Raises PermanentError("webhook-rejected" · "webhook-address-refused"), AnswerUnknown, and any other TemporaryError when the
        backend has certainly not taken it.
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
                answer = await client.send(request, stream=True)
                try:
                    return check_response(answer.status_code, answer.headers, await read_excerpt(answer), target)
                finally:
                    await answer.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            kind = UnconfirmedDelivery if sent.is_set() else TemporaryError
            raise kind(f"{redact_url(target.base)} gave no answer: {error!r}", code=UNANSWERED) from error

    def build_headers(self, outgoing: WebhookRequest, message_id: str) -> dict[str, str]:
        token, secret = self.settings.internal_api_token, self.settings.webhook_secret
        headers = {"Content-Type": "application/json", "X-Request-Source": self.settings.webhook_source, "User-Agent": "atelier"}
        if token:
            headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        return headers | build_signature_headers(message_id, int(time.time()), outgoing.body, secret.get_secret_value() if secret else None)


@asynccontextmanager
async def open_webhook_client(settings: WebhookSettings) -> AsyncIterator[WebhookClient]:
    """No connection is kept between calls: one that the backend has meanwhile closed would leave a call's fate unknown."""
    verify = create_ssl_context(settings.tls_ca_file)
    plain = httpx.AsyncHTTPTransport(verify=verify, limits=httpx.Limits(max_keepalive_connections=0))
    guard = GuardedTransport(settings, ADDRESS_REFUSED, verify=verify)
    limit = settings.webhook_timeout_seconds
    async with (
        httpx.AsyncClient(transport=plain, timeout=limit, trust_env=False) as trusted,
        httpx.AsyncClient(transport=guard, timeout=limit, trust_env=False) as guarded,
    ):
        yield WebhookClient(settings, trusted, guarded)


def resolve_target(base_url: str | None, settings: WebhookSettings) -> Target:
    """Whom to call. Raises PermanentError("webhook-address-refused") when there is nobody, or the message names a private address."""
    own = settings.backend_api_url
    if base_url and is_allowed_host(base_url, settings.webhook_allowed_hosts):
        return Target(strip_webhook_path(base_url), trusted=False)
    if (
        base_url
        and has_private_ip_host(base_url)
        and not settings.allow_private_addresses
        and parse_host(base_url) != parse_host(own or "")
    ):
        message = f"The message names {redact_url(base_url)}, a private address. WEBHOOK_ALLOWED_HOSTS and ALLOW_PRIVATE_ADDRESSES would allow it."
        raise PermanentError(ADDRESS_REFUSED, message)
    if own:
        return Target(strip_webhook_path(own), trusted=True)
    named = f"{redact_url(base_url)} is not on WEBHOOK_ALLOWED_HOSTS" if base_url else "The message names no backend"
    raise PermanentError(ADDRESS_REFUSED, f"{named}, and BACKEND_API_URL is not set.")


def is_allowed_host(base_url: str, allowed: tuple[str, ...]) -> bool:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        return False
    return bool(url.host) and (url.host in allowed or f"{url.host}:{url.port}" in allowed)


def parse_host(url: str) -> str:
    try:
        return httpx.URL(url).host
    except httpx.InvalidURL:
        return ""


def strip_webhook_path(url: str) -> str:
    """The base of an address that may name one of the backend's webhooks in full."""
    return url.partition("/api/webhooks")[0].rstrip("/")


def check_response(status: int, headers: Mapping[str, str], excerpt: str, target: Target) -> int:
    """The status, if it is a 2xx. Raises what any other means; a redirect is a refusal, since it is not followed."""
    if 200 <= status < 300:
        return status
    answer = f"{redact_url(target.base)} answered {status}: {excerpt}" if excerpt else f"{redact_url(target.base)} answered {status}"
    if status == GATEWAY_TIMEOUT:
        raise UnconfirmedDelivery(answer, delay=parse_retry_after(headers), code=UNANSWERED)
    if status in RETRYABLE_STATUSES or status >= 500:
        raise TemporaryError(answer, delay=parse_retry_after(headers), code=UNANSWERED)
    raise PermanentError(REJECTED, answer)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a number or an HTTP date (RFC 9110, 10.2.3); None when there is none that can be read."""
    said = headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said[:9])
    try:
        at = parsedate_to_datetime(said)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


async def read_excerpt(response: httpx.Response) -> str:
    """The beginning of what a refusing backend said, on one line."""
    if response.is_success:
        return ""
    said = b""
    async for piece in response.aiter_bytes(MAX_EXCERPT_BYTES):
        said += piece
        if len(said) >= MAX_EXCERPT_BYTES:
            break
    return " ".join(said[:MAX_EXCERPT_BYTES].decode("utf-8", "replace").split())


def track_request_sent(sent: asyncio.Event) -> dict[str, Any]:
    """Sets `sent` when the first byte of the request leaves: from then on an error leaves the call's fate unknown."""

    async def trace(event: str, _: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            sent.set()

    return {"trace": trace}
