"""LoRA weights on the local disk, named by their sha256; fetched when the order arrives, not when the device starts it."""

import asyncio
import hashlib
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from actors.engines.diffusion.lora.validation import invalid_lora, validate_lora
from actors.engines.diffusion.requests import LoraFile
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from bus.storage.object_keys import tenant_prefix
from contracts.image import Lora

log = structlog.get_logger()

Source = tuple[str | None, str]
"""The tenant and the address: what one tenant may fetch, another may not."""
SHA256_CACHE_SECONDS = 300.0
"""How long an address without a sha256 is taken to hold the same bytes."""


class LoraFileCache:
    """Fetches and caches LoRA files. A tenant's concurrent orders with the same address share one fetch."""

    def __init__(self, claims: ClaimStore, settings: ImageSettings) -> None:
        self.claims, self.settings = claims, settings
        self.folder = settings.local_cache.expanduser() / "loras"
        self.fetch_count = 0
        self._sha256_by_source: dict[Source, tuple[float, str]] = {}
        self._locks: dict[Source, asyncio.Lock] = {}

    async def fetch(self, lora: Lora, tenant: str | None) -> LoraFile:
        """Raises PermanentError("lora-missing" · "lora-invalid"), TemporaryError when the store is unavailable."""
        source = (tenant, lora.uri)
        lock = self._locks.setdefault(source, asyncio.Lock())
        async with lock:
            file = await asyncio.to_thread(self._cached, lora, source) or await self._fetch(lora, source)
        if not lock.locked():
            self._locks.pop(source, None)
        return LoraFile(file, file.stem, lora.scale, redact_uri(lora.uri))

    def _cached(self, lora: Lora, source: Source) -> Path | None:
        fetched_at, cached_sha256 = self._sha256_by_source.get(source, (0.0, ""))
        sha256 = lora.sha256 or (cached_sha256 if time.monotonic() - fetched_at < SHA256_CACHE_SECONDS else None)
        file = self._tenant_folder(source[0]) / f"{sha256}.safetensors"
        if not sha256 or not file.exists():
            return None
        os.utime(file)
        return file

    async def _fetch(self, lora: Lora, source: Source) -> Path:
        try:
            data = await self.claims.fetch(lora.uri, tenant=source[0], max_bytes=self.settings.lora_max_bytes)
        except PermanentError as error:
            if error.code == "asset-missing":
                raise PermanentError("lora-missing", f"there are no LoRA weights at {redact_uri(lora.uri)}: {error}") from None
            if error.code == "asset-too-large":
                raise invalid_lora(redact_uri(lora.uri), str(error)) from None
            raise
        self.fetch_count += 1
        file = await asyncio.to_thread(self._store, lora, source[0], data)
        self._sha256_by_source[source] = (time.monotonic(), file.stem)
        return file

    def _tenant_folder(self, tenant: str | None) -> Path:
        """Each tenant has its own copies: the sha256 of another tenant's weights, which its pictures publish, is no way to use them."""
        return self.folder / tenant_prefix(tenant)

    def _store(self, lora: Lora, tenant: str | None, data: bytes) -> Path:
        """Validate the bytes and store them under their sha256. Invalid ones are not stored."""
        sha256 = hashlib.sha256(data).hexdigest()
        if lora.sha256 and lora.sha256 != sha256:
            raise invalid_lora(redact_uri(lora.uri), f"its sha256 is {sha256}, the order says {lora.sha256}")
        folder = self._tenant_folder(tenant)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{sha256}.{os.getpid()}"
        temporary.write_bytes(data)
        try:
            validate_lora(temporary, redact_uri(lora.uri), max_bytes=self.settings.lora_max_bytes, max_rank=self.settings.lora_max_rank)
            file = temporary.rename(folder / f"{sha256}.safetensors")
        finally:
            temporary.unlink(missing_ok=True)
        log.info("lora.cached", sha256=sha256, bytes=len(data))
        self._evict_until_fits(file)
        return file

    def _evict_until_fits(self, newest: Path) -> None:
        files = sorted(self.folder.rglob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in files)
        for file in files:
            if total <= self.settings.lora_cache_bytes or file == newest:
                return
            total -= file.stat().st_size
            file.unlink(missing_ok=True)


def redact_uri(uri: str) -> str:
    """An address for messages and logs, without query and credentials, which may be secret."""
    parts = urlsplit(uri)
    return parts._replace(query="", netloc=parts.netloc.rpartition("@")[2]).geturl()
