"""The claim check: write bytes once, carry a claim, read them back with their sha256 checked."""

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
    """A folder (`file://`) or a bucket (`s3://`). Content-addressed: writing the same bytes twice is one object.

    Every call raises TemporaryError when the store is away or full.
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
        """Store bytes under a key of the caller's choice; the same key twice is one object. The sha256 is checked after writing.

        Raises PermanentError("key-refused") for a key that climbs out of the store or into the claims.
        """
        ...

    async def fetch(self, uri: str, *, max_bytes: int) -> bytes:
        """The bytes at a foreign `file://`, `s3://`, `gs://` or `https://` address.

        Raises PermanentError("asset-refused" · "asset-missing" · "asset-too-large").
        """
        ...

    async def check(self) -> None:
        """Return when the store can be written to and read from."""
        ...

    async def url(self, claim: Claim) -> str:
        """An address at which the outside world can read the claim."""
        ...


@asynccontextmanager
async def open_claim_store(settings: StoreSettings) -> AsyncIterator[ClaimStore]:
    """The claim store that STORE_URL names. Nothing is connected before the first call; aioboto3 is imported only where S3 is used."""
    async with AsyncExitStack() as stack:
        place = urlsplit(settings.store_url)
        if place.scheme == "s3":
            client = await stack.enter_async_context(open_s3_client(settings))
            assets = AssetFetcher(settings, stack, buckets=(place.netloc,), client=client)
            yield S3ClaimStore(client, place.netloc, place.path.strip("/"), settings, assets)
        else:
            root = Path(unquote(place.path))
            yield FilesystemClaimStore(root, AssetFetcher(settings, stack, roots=(root,)), settings.store_public_url)
