"""Fetches foreign assets over HTTP: `https://` on the public internet, and `gs://` from Google Cloud Storage."""

import asyncio

import httpx

from bus.net.addresses import redact_uri
from bus.net.ssrf import GuardedTransport, describe_http_error, readable_host
from bus.net.tls import create_ssl_context
from bus.storage.asset_errors import REFUSED, refused_error, unreachable_error
from bus.storage.gcs import GcsCredentials, GcsSettings
from bus.storage.http_download import download
from bus.storage.locations import BUCKET_NAME, has_plain_path
from bus.storage.settings import StoreSettings

INTERRUPTIONS = ("disconnected", "closed", "terminated")
"""Words of errors of the protocol that another attempt may not meet. Any other means that the server speaks no HTTP."""


class WebFetcher:
    """Refuses what the settings do not allow, as `AssetFetcher` does."""

    def __init__(self, settings: StoreSettings, gcs: GcsSettings) -> None:
        self._settings, self._gcs, self._credentials = settings, gcs, GcsCredentials(gcs)

    async def fetch_gcs(self, uri: str, max_bytes: int, *, named: bool, own: bool) -> bytes:
        """`named`: ASSET_BUCKETS names the bucket. `own`: with the credentials of this installation."""
        bucket, _, key = uri.removeprefix("gs://").partition("/")
        if not BUCKET_NAME.fullmatch(bucket) or not has_plain_path(f"{bucket}/{key}"):
            raise refused_error(uri, "it is not of the form gs://bucket/key")
        url = httpx.URL(self._gcs.object_url(bucket, key), params={"alt": "media"})
        if not named:
            self._check_host(url)
        headers = await self._credentials.headers() if own else {}
        # The settings name the host; the guard is for requests that a tenant's address causes without a setting that allows them.
        transport = self._direct_transport() if headers else GuardedTransport(self._settings, REFUSED)
        return await self._download(url, transport, max_bytes, origin=redact_uri(uri), headers=headers)

    def _direct_transport(self) -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(verify=create_ssl_context(self._settings.tls_ca_file))

    async def fetch_http(self, uri: str, max_bytes: int) -> bytes:
        try:
            url = httpx.URL(uri)
        except httpx.InvalidURL as error:
            raise refused_error(uri, "it is not a URL") from error
        self._check_host(url)
        return await self._download(url, GuardedTransport(self._settings, REFUSED), max_bytes, origin=redact_uri(uri))

    def _check_host(self, url: httpx.URL) -> None:
        hosts = self._settings.asset_allowed_hosts
        if hosts and readable_host(url) not in hosts:
            raise refused_error(str(url), "ASSET_ALLOWED_HOSTS does not name its host")

    async def _download(
        self, url: httpx.URL, transport: httpx.AsyncBaseTransport, max_bytes: int, *, origin: str, headers: dict[str, str] | None = None
    ) -> bytes:
        try:
            async with asyncio.timeout(self._settings.asset_timeout_seconds):
                return await download(url, transport, max_bytes, origin=origin, check=self._check_host, headers=headers)
        except (httpx.InvalidURL, UnicodeError) as error:  # The client joins the address of a redirect before it is followed.
            raise refused_error(origin, "it redirects, and gives no readable address to go on to") from error
        except httpx.RemoteProtocolError as error:
            if not any(word in str(error) for word in INTERRUPTIONS):
                raise refused_error(origin, "its response is not valid HTTP") from error
            raise unreachable_error(f"{origin} was interrupted: {describe_http_error(error)}") from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise unreachable_error(f"{origin} did not respond: {describe_http_error(error)}") from error
