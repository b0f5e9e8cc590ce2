"""A bucket as the claim store: objects below one prefix, each with a sha256 that the server stores and checks."""

import asyncio
from typing import Any
from urllib.parse import quote

import structlog

from bus.errors import PermanentError, TemporaryError
from bus.storage.fetcher import AssetFetcher
from bus.storage.object_keys import claim_key, safe_key, sha256_base64, sha256_hex, verify_claim
from bus.storage.s3_client import translate_s3_errors
from bus.storage.settings import StoreSettings
from contracts.claim import Claim

log = structlog.get_logger()


class S3ClaimStore:
    """Objects below one prefix of one bucket."""

    def __init__(self, client: Any, bucket: str, prefix: str, settings: StoreSettings, fetcher: AssetFetcher) -> None:
        self._client, self._bucket, self._settings, self._fetcher = client, bucket, settings, fetcher
        self._prefix = f"{prefix}/" if prefix else ""

    async def read(self, claim: Claim) -> bytes:
        return verify_claim(claim, await self._get(self._key(claim.uri), claim))

    async def write(self, data: bytes, *, media_type: str, width: int | None = None, height: int | None = None) -> Claim:
        sha256 = sha256_hex(data)
        uri = await self._put(claim_key(sha256, media_type), data, media_type, sha256)
        log.debug("claim.written", uri=uri, size=len(data))
        return Claim(uri=uri, sha256=sha256, media_type=media_type, size=len(data), width=width, height=height)

    async def put(self, key: str, data: bytes, *, media_type: str) -> Claim:
        sha256 = sha256_hex(data)
        uri = await self._put(safe_key(key), data, media_type, sha256)
        return Claim(uri=uri, sha256=sha256, media_type=media_type, size=len(data))

    async def fetch(self, uri: str, *, max_bytes: int) -> bytes:
        return await self._fetcher.fetch(uri, max_bytes=max_bytes)

    async def check(self) -> None:
        with translate_s3_errors(f"checking the bucket {self._bucket}"):
            await self._client.head_bucket(Bucket=self._bucket)

    async def url(self, claim: Claim) -> str:
        key = self._key(claim.uri)
        if public := self._settings.store_public_url:
            return f"{public.rstrip('/')}/{quote(key)}"
        target, seconds = {"Bucket": self._bucket, "Key": key}, int(self._settings.s3_presign_seconds)
        with translate_s3_errors(f"presigning {claim.uri}"):
            return str(await self._client.generate_presigned_url("get_object", Params=target, ExpiresIn=seconds))

    def _key(self, uri: str) -> str:
        start = f"s3://{self._bucket}/"
        if not uri.startswith(start + self._prefix):
            raise PermanentError(
                "claim-refused", f"{uri[:200]!r} is not in this store, {start}{self._prefix}. Do all actors use the same STORE_URL?"
            )
        return uri.removeprefix(start)

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
