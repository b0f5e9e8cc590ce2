"""A bucket as the claim store: objects below one prefix. The server checks what it receives, and what it stored is compared with that.

By default an object is written with its Content-MD5, which every S3 server knows; with AWS_REQUEST_CHECKSUM_CALCULATION=when_supported
with its sha256, in a header that some servers refuse.
"""

import asyncio
import time
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import structlog

from bus.errors import PermanentError, TemporaryError
from bus.storage.fetcher import AssetFetcher
from bus.storage.locations import BucketLocation
from bus.storage.object_keys import (
    claim_key,
    is_generated_key,
    md5_base64,
    md5_hex,
    put_key,
    readable_key,
    sha256_base64,
    sha256_hex,
    verify_claim,
)
from bus.storage.public_address import describe_expiry, permanent_base
from bus.storage.s3_client import read_at_most
from bus.storage.s3_errors import translate_s3_errors
from bus.storage.settings import StoreSettings
from contracts.claim import Claim

log = structlog.get_logger()

CHECK_FOLDER = ".checks/"
"""Of the objects that a check writes. No key of a caller's choice begins like this."""
CHECK_TEXT = b"atelier"
PROOF_SECONDS = 300.0
"""For how long a written object proves that the store is usable, where the bucket may not be asked for."""
REMOVAL_SECONDS = 2.0
"""How long a check that failed, or was given up, waits for the deletion of its object."""
BUCKET_UNASKABLE = frozenset({403, 405, 501})
"""Statuses of a HEAD of the bucket where the access key may use its objects alone, or the server knows no such request."""


class S3ClaimStore:
    """Objects below one prefix of one bucket."""

    def __init__(self, client: Any, location: BucketLocation, settings: StoreSettings, fetcher: AssetFetcher) -> None:
        self._client, self._location, self._settings, self._fetcher = client, location, settings, fetcher
        self._bucket, self._prefix = location.bucket, location.prefix
        self._sends_sha256 = settings.aws_request_checksum_calculation == "when_supported"
        self._check_key = f"{location.prefix}{CHECK_FOLDER}{uuid4()}"
        self._check_lock = asyncio.Lock()
        self._proven_at: float | None = None

    async def read(self, claim: Claim, *, tenant: str | None) -> bytes:
        return verify_claim(claim, await self._get(self._prefix + readable_key(self._location, claim, tenant), claim))

    async def read_recorded(self, claim: Claim, *, tenant: str | None) -> bytes:
        key = readable_key(self._location, claim, tenant, recorded=True)
        return verify_claim(claim, await self._get(self._prefix + key, claim))

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
        sha256 = sha256_hex(data)
        uri = await self._put(claim_key(sha256, media_type, tenant=tenant, generated=generated), data, media_type, sha256)
        log.debug("claim.written", uri=uri, size=len(data))
        return Claim(uri=uri, sha256=sha256, media_type=media_type, size=len(data), width=width, height=height)

    async def is_generated(self, claim: Claim, *, tenant: str | None) -> bool:
        key = self._location.key_of(claim.uri)
        return key is not None and is_generated_key(key, tenant)

    async def put(self, key: str, data: bytes, *, tenant: str | None, media_type: str) -> Claim:
        sha256 = sha256_hex(data)
        uri = await self._put(put_key(key, tenant), data, media_type, sha256)
        return Claim(uri=uri, sha256=sha256, media_type=media_type, size=len(data))

    async def fetch(self, uri: str, *, tenant: str | None, max_bytes: int) -> bytes:
        return await self._fetcher.fetch(uri, tenant=tenant, max_bytes=max_bytes)

    async def fetch_recorded(self, uri: str, *, tenant: str | None, max_bytes: int) -> bytes:
        return await self._fetcher.fetch(uri, tenant=tenant, max_bytes=max_bytes, recorded=True)

    async def check(self) -> None:
        """Once, write, read and delete a small object; later, ask for the bucket. Where that is refused, write again every few minutes."""
        async with self._check_lock:
            is_refused = self._proven_at is not None and not await self._may_ask_for_bucket()
            if self._proven_at is None or (is_refused and time.monotonic() - self._proven_at > PROOF_SECONDS):
                await self._try_object()
                self._proven_at = time.monotonic()

    async def _may_ask_for_bucket(self) -> bool:
        """False where the server responds, but not to this request. Raises TemporaryError for a bucket that is not usable."""
        from botocore.exceptions import ClientError

        with self._translate_errors(f"checking the bucket {self._bucket}"):
            try:
                async with asyncio.timeout(self._settings.store_timeout_seconds):
                    await self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in BUCKET_UNASKABLE:
                    raise
                return False
        return True

    async def _try_object(self) -> None:
        """The object has one key in this process, and is deleted whatever happens: checks that fail do not fill the bucket."""
        from botocore.exceptions import ClientError

        target, may_exist = {"Bucket": self._bucket, "Key": self._check_key}, True
        try:
            with self._translate_errors(f"checking s3://{self._bucket}/{self._check_key} by writing and reading it"):
                async with asyncio.timeout(self._settings.store_timeout_seconds):
                    try:
                        await self._client.put_object(**target, Body=CHECK_TEXT, ContentType="text/plain", **self._checksum(CHECK_TEXT))
                    except ClientError:
                        may_exist = False
                        raise
                    read = await read_at_most(await self._client.get_object(**target), len(CHECK_TEXT))
        finally:
            if may_exist:
                await asyncio.shield(self._remove_check())
        if read != CHECK_TEXT:
            raise TemporaryError(f"s3://{self._bucket}/{self._check_key} does not hold what was written to it", code="store-away")

    async def _remove_check(self) -> None:
        """A store that lets nothing be deleted is usable: nothing else is deleted there."""
        try:
            with self._translate_errors(f"deleting s3://{self._bucket}/{self._check_key}"):
                async with asyncio.timeout(REMOVAL_SECONDS):
                    await self._client.delete_object(Bucket=self._bucket, Key=self._check_key)
        except TemporaryError as error:
            log.warning("store.check_object_kept", reason=str(error))

    @property
    def link_expiry(self) -> str | None:
        return describe_expiry(self._settings)

    async def url(self, claim: Claim, *, tenant: str | None, permanent: bool = False) -> str:
        key = readable_key(self._location, claim, tenant)
        if public := permanent_base(self._settings) if permanent else self._settings.store_public_url:
            return f"{public.rstrip('/')}/{quote(self._prefix + key)}"
        target, seconds = {"Bucket": self._bucket, "Key": self._prefix + key}, int(self._settings.s3_presign_seconds)
        with self._translate_errors(f"presigning {claim.uri}"):
            async with asyncio.timeout(self._settings.store_timeout_seconds):  # It may ask for the credentials of the machine.
                return str(await self._client.generate_presigned_url("get_object", Params=target, ExpiresIn=seconds))

    def _translate_errors(self, action: str, **errors: Any) -> AbstractContextManager[None]:
        return translate_s3_errors(action, server=self._settings.aws_s3_endpoint_url, **errors)

    async def _get(self, key: str, claim: Claim) -> bytes:
        missing = PermanentError("claim-missing", f"No object at {claim.uri}: it was removed, or never written to this store.")
        with self._translate_errors(f"reading {claim.uri}", on_missing=lambda: missing):
            async with asyncio.timeout(self._settings.store_timeout_seconds):
                # An object of another size is corrupt; it is not read, however large.
                return await read_at_most(await self._client.get_object(Bucket=self._bucket, Key=key), claim.size) or b""

    def _checksum(self, data: bytes) -> dict[str, str]:
        """The parameter by which the server checks what it receives."""
        if self._sends_sha256:
            return {"ChecksumSHA256": sha256_base64(sha256_hex(data))}
        return {"ContentMD5": md5_base64(data)}

    async def _put(self, key: str, data: bytes, media_type: str, sha256: str) -> str:
        """The server checks the checksum on writing; then its size and checksum are compared, else the object is read back."""
        key = self._prefix + key
        target = {"Bucket": self._bucket, "Key": key}
        cache = {"CacheControl": self._settings.s3_cache_control} if self._settings.s3_cache_control else {}
        with self._translate_errors(f"writing s3://{self._bucket}/{key}"):
            # The SDK's own time-outs do not cover its search for credentials.
            async with asyncio.timeout(self._settings.store_timeout_seconds):
                await self._client.put_object(**target, Body=data, ContentType=media_type, **cache, **self._checksum(data))
                head = await self._client.head_object(**target, **({"ChecksumMode": "ENABLED"} if self._sends_sha256 else {}))
        claim = Claim(uri=f"s3://{self._bucket}/{key}", sha256=sha256, media_type=media_type, size=len(data))
        if not self._holds(head, data, sha256) and sha256_hex(await self._get(key, claim)) != sha256:
            raise TemporaryError(f"{claim.uri} does not hold what was written: its sha256 differs")
        return claim.uri

    def _holds(self, head: dict[str, Any], data: bytes, sha256: str) -> bool:
        """Whether the server says that it stored these bytes. An ETag is the MD5 unless the object is encrypted, or the server differs."""
        if self._sends_sha256:
            same = head.get("ChecksumSHA256") == sha256_base64(sha256)
        else:
            same = str(head.get("ETag", "")).removeprefix("W/").strip('"').lower() == md5_hex(data)
        return same and head.get("ContentLength") == len(data)
