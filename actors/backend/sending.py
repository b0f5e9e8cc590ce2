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

from actors.backend.messages import Call
from actors.backend.standard_webhooks import signed_headers
from actors.settings import WebhookSettings
from bus.addresses import GuardedTransport, names_private_address, shown
from bus.errors import PermanentError, TemporaryError
from bus.tls import trust

REFUSED, REJECTED, UNANSWERED = "webhook-address-refused", "webhook-rejected", "webhook-unanswered"
ASKS_FOR_PATIENCE = frozenset({408, 425, 429})
GATEWAY_TIMEOUT = 504
EXCERPT = 300


@dataclass(frozen=True)
class Target:
    """A backend. `trusted`: its address stands in the settings, and may lie in a private network."""

    base: str
    trusted: bool


class AnswerUnknown(TemporaryError):
    """The call was sent, at least in part, and whether the backend took it is not known."""


@dataclass(frozen=True)
class Sender:
    """The two ways out, and what is written on every call."""

    settings: WebhookSettings
    trusted: httpx.AsyncClient
    guarded: httpx.AsyncClient

    async def send(self, target: Target, call: Call, message_id: str) -> int:
        """Make the call; return the status of an answer that accepts it.

        Raises PermanentError("webhook-rejected" · "webhook-address-refused"), AnswerUnknown, and any other TemporaryError when the
        backend has certainly not taken it.
        """
        client, sent = (self.trusted if target.trusted else self.guarded), asyncio.Event()
        try:
            async with asyncio.timeout(self.settings.webhook_timeout_seconds):
                headers = self.headers(call, message_id)
                request = client.build_request(
                    call.method, target.base + call.path, content=call.body, headers=headers, extensions=traced(sent)
                )
                answer = await client.send(request, stream=True)
                try:
                    return accepted(answer.status_code, answer.headers, await excerpt(answer), target)
                finally:
                    await answer.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            kind = AnswerUnknown if sent.is_set() else TemporaryError
            raise kind(f"{shown(target.base)} gave no answer: {error!r}", code=UNANSWERED) from error

    def headers(self, call: Call, message_id: str) -> dict[str, str]:
        token, secret = self.settings.internal_api_token, self.settings.webhook_secret
        headers = {"Content-Type": "application/json", "X-Request-Source": self.settings.webhook_source, "User-Agent": "atelier"}
        if token:
            headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        return headers | signed_headers(message_id, int(time.time()), call.body, secret.get_secret_value() if secret else None)


@asynccontextmanager
async def open_sender(settings: WebhookSettings) -> AsyncIterator[Sender]:
    """No connection is kept between calls: one that the backend has meanwhile closed would leave a call's fate unknown."""
    verify = trust(settings.tls_ca_file)
    plain = httpx.AsyncHTTPTransport(verify=verify, limits=httpx.Limits(max_keepalive_connections=0))
    guard = GuardedTransport(settings, REFUSED, verify=verify)
    limit = settings.webhook_timeout_seconds
    async with (
        httpx.AsyncClient(transport=plain, timeout=limit, trust_env=False) as trusted,
        httpx.AsyncClient(transport=guard, timeout=limit, trust_env=False) as guarded,
    ):
        yield Sender(settings, trusted, guarded)


def target_of(base_url: str | None, settings: WebhookSettings) -> Target:
    """Whom to call. Raises PermanentError("webhook-address-refused") when there is nobody, or the message names a private address."""
    own = settings.backend_api_url
    if base_url and listed(base_url, settings.webhook_allowed_hosts):
        return Target(trimmed(base_url), trusted=False)
    if base_url and names_private_address(base_url) and not settings.allow_private_addresses and host_of(base_url) != host_of(own or ""):
        message = (
            f"The message names {shown(base_url)}, a private address. WEBHOOK_ALLOWED_HOSTS and ALLOW_PRIVATE_ADDRESSES would allow it."
        )
        raise PermanentError(REFUSED, message)
    if own:
        return Target(trimmed(own), trusted=True)
    named = f"{shown(base_url)} is not on WEBHOOK_ALLOWED_HOSTS" if base_url else "The message names no backend"
    raise PermanentError(REFUSED, f"{named}, and BACKEND_API_URL is not set.")


def listed(base_url: str, allowed: tuple[str, ...]) -> bool:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        return False
    return bool(url.host) and (url.host in allowed or f"{url.host}:{url.port}" in allowed)


def host_of(url: str) -> str:
    try:
        return httpx.URL(url).host
    except httpx.InvalidURL:
        return ""


def trimmed(url: str) -> str:
    """The base of an address that may name one of the backend's webhooks in full."""
    return url.partition("/api/webhooks")[0].rstrip("/")


def accepted(status: int, headers: Mapping[str, str], said: str, target: Target) -> int:
    """The status, if it is a 2xx. Raises what any other means; a redirect is a refusal, since it is not followed."""
    if 200 <= status < 300:
        return status
    answer = f"{shown(target.base)} answered {status}: {said}" if said else f"{shown(target.base)} answered {status}"
    if status == GATEWAY_TIMEOUT:
        raise AnswerUnknown(answer, delay=retry_after(headers), code=UNANSWERED)
    if status in ASKS_FOR_PATIENCE or status >= 500:
        raise TemporaryError(answer, delay=retry_after(headers), code=UNANSWERED)
    raise PermanentError(REJECTED, answer)


def retry_after(headers: Mapping[str, str]) -> float | None:
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


async def excerpt(answer: httpx.Response) -> str:
    """The beginning of what a refusing backend said, on one line."""
    if answer.is_success:
        return ""
    said = b""
    async for piece in answer.aiter_bytes(EXCERPT):
        said += piece
        if len(said) >= EXCERPT:
            break
    return " ".join(said[:EXCERPT].decode("utf-8", "replace").split())


def traced(sent: asyncio.Event) -> dict[str, Any]:
    """Sets `sent` when the first byte of the request leaves: from then on an error leaves the call's fate unknown."""

    async def trace(event: str, _: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            sent.set()

    return {"trace": trace}
