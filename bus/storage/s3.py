"""A bucket as the claim store: objects below one prefix, each with a sha256 that the server stores and checks."""

import asyncio
from typing import Any
from urllib.parse import quote

import structlog

from bus.errors import PermanentError, TemporaryError
from bus.storage.fetcher import AssetFetcher
from bus.storage.locations import BucketLocation
from bus.storage.object_keys import claim_key, is_generated_key, put_key, readable_key, sha256_base64, sha256_hex, verify_claim
from bus.storage.public_address import describe_expiry, permanent_base
from bus.storage.s3_client import translate_s3_errors
from bus.storage.settings import StoreSettings
from contracts.claim import Claim

log = structlog.get_logger()


class S3ClaimStore:
    """Objects below one prefix of one bucket."""

    def __init__(self, client: Any, location: BucketLocation, settings: StoreSettings, fetcher: AssetFetcher) -> None:
        self._client, self._location, self._settings, self._fetcher = client, location, settings, fetcher
        self._bucket, self._prefix = location.bucket, location.prefix

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
        with translate_s3_errors(f"checking the bucket {self._bucket}"):
            await self._client.head_bucket(Bucket=self._bucket)

    @property
    def link_expiry(self) -> str | None:
        return describe_expiry(self._settings)

    async def url(self, claim: Claim, *, tenant: str | None, permanent: bool = False) -> str:
        key = readable_key(self._location, claim, tenant)
        if public := permanent_base(self._settings) if permanent else self._settings.store_public_url:
            return f"{public.rstrip('/')}/{quote(self._prefix + key)}"
        target, seconds = {"Bucket": self._bucket, "Key": self._prefix + key}, int(self._settings.s3_presign_seconds)
        with translate_s3_errors(f"presigning {claim.uri}"):
            return str(await self._client.generate_presigned_url("get_object", Params=target, ExpiresIn=seconds))

    async def _get(self, key: str, claim: Claim) -> bytes:
        missing = PermanentError("claim-missing", f"No object at {claim.uri}: it was removed, or never written to this store.")
        with translate_s3_errors(f"reading {claim.uri}", on_missing=lambda: missing):
            async with asyncio.timeout(self._settings.store_timeout_seconds):
                response = await self._client.get_object(Bucket=self._bucket, Key=key)
                async with response["Body"] as body:
                    # An object of another size is corrupt; it is not read, however large.
                    return bytes(await body.read()) if response["ContentLength"] == claim.size else b""

    async def _put(self, key: str, data: bytes, media_type: str, sha256: str) -> str:
        """The server checks the sha256 on writing; then it is read back, by HEAD where the server stores it, else with the object."""
        key, checksum = self._prefix + key, sha256_base64(sha256)
        target = {"Bucket": self._bucket, "Key": key}
        with translate_s3_errors(f"writing s3://{self._bucket}/{key}"):
            cache = self._settings.s3_cache_control
            # The SDK's own time-outs do not cover its wait for `100 Continue`.
            async with asyncio.timeout(self._settings.store_timeout_seconds):
                await self._client.put_object(**target, Body=data, ContentType=media_type, CacheControl=cache, ChecksumSHA256=checksum)
                head = await self._client.head_object(**target, ChecksumMode="ENABLED")
        claim = Claim(uri=f"s3://{self._bucket}/{key}", sha256=sha256, media_type=media_type, size=len(data))
        stored = head.get("ChecksumSHA256") or sha256_base64(sha256_hex(await self._get(key, claim)))
        if head["ContentLength"] != len(data) or stored != checksum:
            raise TemporaryError(f"{claim.uri} does not hold what was written: its sha256 differs")
        return claim.uri
