"""Fetches foreign assets (a LoRA, a signature picture) from addresses in messages, as far as the settings allow it.

Reads `file://` below allowed folders, `s3://` from allowed buckets, `https://` on the public internet, and `gs://`: with the credentials
of this installation for itself, and for a tenant where the settings name the bucket; else without any, as a public object.
Addresses in our own stores (STORE_URL, UPLOAD_URL) are none of them, whatever the settings allow: there a key needs the right tenant.
"""

import asyncio
import errno
from contextlib import AsyncExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import to_thread

from bus.errors import PermanentError, TemporaryError
from bus.net.addresses import redact_uri
from bus.storage.asset_errors import (
    REFUSED,
    check_size,
    forbidden_error,
    missing_error,
    refused_error,
    too_large_error,
)
from bus.storage.gcs import GcsSettings
from bus.storage.locations import BUCKET_NAME, Location, file_path, has_plain_path, parse_bucket, parse_location
from bus.storage.object_keys import may_read
from bus.storage.s3_client import open_s3_client, read_at_most
from bus.storage.s3_errors import translate_s3_errors
from bus.storage.settings import StoreSettings

if TYPE_CHECKING:
    from bus.storage.web_fetcher import WebFetcher

MAX_ADDRESS_CHARS = 8192
NO_FILE_ERRORS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
"""Of a path at which no file can be."""


class AssetFetcher:
    """Without `client` an S3 client is opened when one is first needed."""

    def __init__(self, settings: StoreSettings, stack: AsyncExitStack, *, client: Any = None) -> None:
        self._settings, self._stack, self._client = settings, stack, client
        self._stores: list[Location] = [parse_location(url) for url in (settings.store_url, settings.upload_url) if url]
        self._buckets = [parse_bucket(name) for name in settings.asset_buckets if name != "*"]
        self._client_lock = asyncio.Lock()
        self._gcs = GcsSettings()

    async def fetch(self, uri: str, *, tenant: str | None, max_bytes: int, recorded: bool = False) -> bytes:
        """`recorded`: the address is from the source database, so it may lie in a store, where `may_read` allows it."""
        scheme = check_address(uri).partition("://")[0]
        match scheme:
            case "file":
                return await to_thread.run_sync(self._read_file, uri, tenant, max_bytes, recorded)
            case "s3":
                return await self._fetch_s3(uri, tenant, max_bytes, recorded)
            case "gs":
                return await self._web.fetch_gcs(uri, max_bytes, named=self._is_named(uri), own=self._may_use_credentials(uri, tenant))
            case "https" | "http":
                return await self._web.fetch_http(uri, max_bytes)
            case _:
                raise PermanentError(REFUSED, f"The address begins with {scheme[:20]!r}, with none of file://, s3://, gs:// and https://.")

    def _lies_in_store(self, uri: str, tenant: str | None, recorded: bool) -> bool:
        """Whether the address is in one of the stores. Raises PermanentError("asset-refused") where it may not be read there."""
        key = next((key for store in self._stores if (key := store.key_of(uri)) is not None), None)
        if key is not None and not (tenant is None or (recorded and may_read(key, tenant, recorded=True))):
            raise refused_error(uri, "it lies in the store, whose files a message names by a claim, not by an address")
        return key is not None

    def _read_file(self, uri: str, tenant: str | None, max_bytes: int, recorded: bool) -> bytes:
        roots = (Path("/"),) if self._lies_in_store(uri, tenant, recorded) else self._settings.asset_roots
        return read_asset(uri, roots, max_bytes)

    async def _fetch_s3(self, uri: str, tenant: str | None, max_bytes: int, recorded: bool) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        allowed = "*" in self._settings.asset_buckets or self._is_named(uri)
        if not (self._lies_in_store(uri, tenant, recorded) or allowed) or not has_plain_path(key) or not BUCKET_NAME.fullmatch(bucket):
            raise refused_error(uri, "it lies in a bucket, or below a prefix, that ASSET_BUCKETS does not name")
        client = await self._s3_client()
        with translate_s3_errors(
            f"fetching {redact_uri(uri)}",
            server=self._settings.aws_s3_endpoint_url,
            on_missing=lambda: missing_error(uri),
            on_refused=lambda: forbidden_error(uri, "the bucket forbids it"),
        ):
            async with asyncio.timeout(self._settings.asset_timeout_seconds):
                data = await read_at_most(await client.get_object(Bucket=bucket, Key=key), max_bytes)
        if data is None:
            raise too_large_error(uri, max_bytes)
        return data

    def _is_named(self, uri: str) -> bool:
        """Whether ASSET_BUCKETS names the bucket, or a prefix of the address."""
        return any(place.key_of(uri) for place in self._buckets)

    def _may_use_credentials(self, uri: str, tenant: str | None) -> bool:
        """For the installation itself; for a tenant in a bucket that ASSET_BUCKETS names, unless it may be the bucket of a store."""
        in_store = any(store.key_of(f"s3://{uri.removeprefix('gs://')}") is not None for store in self._stores)
        return tenant is None or (self._is_named(uri) and not in_store)

    @cached_property
    def _web(self) -> "WebFetcher":
        """Imported when an address needs it: most processes fetch nothing over HTTP, and httpx takes 4 MB."""
        from bus.storage.web_fetcher import WebFetcher

        return WebFetcher(self._settings, self._gcs)

    async def _s3_client(self) -> Any:
        async with self._client_lock:
            if self._client is None:
                self._client = await self._stack.enter_async_context(open_s3_client(self._settings))
        return self._client


def check_address(uri: str) -> str:
    """The address itself. Raises PermanentError("asset-refused") for one that is too long, or that is not Unicode."""
    if len(uri) > MAX_ADDRESS_CHARS:
        raise PermanentError(REFUSED, f"The address has {len(uri)} characters, more than {MAX_ADDRESS_CHARS}.")
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise PermanentError(REFUSED, f"The address is not Unicode: {error.reason} at {error.start}.") from error
    return uri


def read_asset(uri: str, roots: tuple[Path, ...], max_bytes: int) -> bytes:
    """A file below one of the roots; symbolic links are resolved before the check."""
    path = file_path(uri)
    if path is None or not any(path.is_relative_to(root.resolve()) for root in roots):
        raise refused_error(uri, "ASSET_ROOTS does not name its folder")
    try:
        check_size(path.stat().st_size, uri, max_bytes)
        return path.read_bytes()
    except OSError as error:
        if error.errno in NO_FILE_ERRORS:
            raise missing_error(uri) from error
        raise TemporaryError(f"{redact_uri(uri)} cannot be read: {error.strerror}") from error
