"""The claim check: bytes are written to a store, messages carry a claim on them, and every read checks the sha256."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from bus.storage.fetcher import AssetFetcher
from bus.storage.filesystem import FilesystemClaimStore
from bus.storage.s3 import S3ClaimStore
from bus.storage.s3_client import open_s3_client
from bus.storage.settings import StoreSettings
from contracts.claim import Claim


class ClaimStore(Protocol):
    """A folder (`file://`) or a bucket (`s3://`). Content-addressed: the same bytes written twice are one object.

    Every method raises TemporaryError when the store is unavailable or full.
    """

    async def read(self, claim: Claim) -> bytes:
        """The bytes of a claim.

        Raises PermanentError("claim-missing" · "claim-corrupt"; "claim-refused" for an address outside the store).
        """
        ...

    async def write(self, data: bytes, *, media_type: str, width: int | None = None, height: int | None = None) -> Claim:
        """Store bytes under their sha256 and return the claim on them."""
        ...

    async def put(self, key: str, data: bytes, *, media_type: str) -> Claim:
        """Store bytes under a key of the caller's choice; a second write replaces the first. The sha256 is checked after writing.

        Raises PermanentError("key-refused") for a key outside the store, or among the claims.
        """
        ...

    async def fetch(self, uri: str, *, max_bytes: int) -> bytes:
        """The bytes at a foreign `file://`, `s3://`, `gs://` or `https://` address.

        Raises PermanentError("asset-refused" · "asset-missing" · "asset-too-large").
        """
        ...

    async def check(self) -> None:
        """Return if the store is usable."""
        ...

    async def url(self, claim: Claim) -> str:
        """A URL at which clients can read the claim."""
        ...


@asynccontextmanager
async def open_claim_store(settings: StoreSettings) -> AsyncIterator[ClaimStore]:
    """The claim store that STORE_URL names. It connects at the first call; aioboto3 is imported only for S3."""
    async with AsyncExitStack() as stack:
        url = urlsplit(settings.store_url)
        if url.scheme == "s3":
            client = await stack.enter_async_context(open_s3_client(settings))
            fetcher = AssetFetcher(settings, stack, buckets=(url.netloc,), client=client)
            yield S3ClaimStore(client, url.netloc, url.path.strip("/"), settings, fetcher)
        else:
            root = Path(unquote(url.path))
            yield FilesystemClaimStore(root, AssetFetcher(settings, stack, roots=(root,)), settings.store_public_url)
