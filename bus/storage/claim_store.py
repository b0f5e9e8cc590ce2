"""The claim check: bytes are written to a store, messages carry a claim on them, and every read checks the sha256."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from bus.storage.fetcher import AssetFetcher
from bus.storage.filesystem import FilesystemClaimStore
from bus.storage.locations import BucketLocation, parse_location
from bus.storage.s3 import S3ClaimStore
from bus.storage.s3_client import open_s3_client
from bus.storage.settings import StoreSettings
from contracts.claim import Claim


class ClaimStore(Protocol):
    """A folder (`file://`) or a bucket (`s3://`). Content-addressed: the same bytes written twice by a tenant are one object.

    `tenant`: for whom a step acts, from its delivery or the caller's key; None: the installation itself. A tenant's keys lie in its own
    folder; see `bus/storage/object_keys.py`. Every method raises TemporaryError when the store is unavailable or full.
    """

    async def read(self, claim: Claim, *, tenant: str | None) -> bytes:
        """The bytes of a claim.

        Raises PermanentError("claim-missing" · "claim-corrupt"; "claim-refused" for an address outside the store or the tenant's folder).
        """
        ...

    async def read_recorded(self, claim: Claim, *, tenant: str | None) -> bytes:
        """Like `read`, for a claim from the ledger: also of a key that was written before there were tenants' folders."""
        ...

    async def write(
        self,
        data: bytes,
        *,
        tenant: str | None,
        media_type: str,
        width: int | None = None,
        height: int | None = None,
        generated: bool = False,
    ) -> Claim:
        """Store bytes under their sha256 and return the claim on them. `generated`: a model of ours generated the picture."""
        ...

    async def is_generated(self, claim: Claim, *, tenant: str | None) -> bool:
        """Whether the claim was written as `generated`, for the tenant. Call it after `read`, which checks the bytes."""
        ...

    async def put(self, key: str, data: bytes, *, tenant: str | None, media_type: str) -> Claim:
        """Store bytes under a key of the caller's choice in the tenant's folder; a second write replaces the first.

        The sha256 is checked after writing. Raises PermanentError("key-refused") for a key outside the folder, or among the claims.
        """
        ...

    async def fetch(self, uri: str, *, tenant: str | None, max_bytes: int) -> bytes:
        """The bytes at a foreign `file://`, `s3://`, `gs://` or `https://` address. For a tenant, the store is not one.

        Raises PermanentError("asset-refused" · "asset-forbidden" · "asset-missing" · "asset-too-large").
        """
        ...

    async def fetch_recorded(self, uri: str, *, tenant: str | None, max_bytes: int) -> bytes:
        """Like `fetch`, for an address from the source database: in the store too, outside the folders of other tenants."""
        ...

    async def check(self) -> None:
        """Return if the store is usable."""
        ...

    async def url(self, claim: Claim, *, tenant: str | None, permanent: bool = False) -> str:
        """A URL at which clients can read the claim. `permanent`: for a record that is kept, where the settings allow one that lasts.

        Raises PermanentError("claim-refused") as `read` does.
        """
        ...

    @property
    def link_expiry(self) -> str | None:
        """Why even its permanent URLs expire; None when they do not."""
        ...


@asynccontextmanager
async def open_claim_store(settings: StoreSettings) -> AsyncIterator[ClaimStore]:
    """The claim store that STORE_URL names. It connects at the first call; aioboto3 is imported only for S3."""
    async with AsyncExitStack() as stack:
        location = parse_location(settings.store_url)
        if isinstance(location, BucketLocation):
            client = await stack.enter_async_context(open_s3_client(settings))
            yield S3ClaimStore(client, location, settings, AssetFetcher(settings, stack, client=client))
        else:
            yield FilesystemClaimStore(location, AssetFetcher(settings, stack), settings.store_public_url)
