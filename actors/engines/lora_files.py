"""LoRA weights on the local disk, named by their sha256: fetched when the order comes in, not at its turn on the device."""

import asyncio
import hashlib
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from actors.engines.image_work import LoraFile
from actors.engines.loras import check_lora, invalid
from actors.engines.settings import ImageSettings
from bus.claims import ClaimStore
from bus.errors import PermanentError
from contracts.image import Lora

log = structlog.get_logger()

REMEMBER_SECONDS = 300.0
"""An address without a sha256 is believed to hold the same bytes for so long."""


class LoraFiles:
    """Orders that ask for the same address at once share one fetch."""

    def __init__(self, claims: ClaimStore, settings: ImageSettings) -> None:
        self.claims, self.settings = claims, settings
        self.folder = settings.local_cache.expanduser() / "loras"
        self.fetches = 0
        self._known: dict[str, tuple[float, str]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def fetch(self, lora: Lora) -> LoraFile:
        """Raises PermanentError("lora-missing" · "lora-invalid"), TemporaryError when its store is away."""
        lock = self._locks.setdefault(lora.uri, asyncio.Lock())
        async with lock:
            file = await asyncio.to_thread(self._cached, lora) or await self._fetch(lora)
        if not lock.locked():
            self._locks.pop(lora.uri, None)
        return LoraFile(file, file.stem, lora.scale, named(lora.uri))

    def _cached(self, lora: Lora) -> Path | None:
        since, known = self._known.get(lora.uri, (0.0, ""))
        name = lora.sha256 or (known if time.monotonic() - since < REMEMBER_SECONDS else None)
        file = self.folder / f"{name}.safetensors"
        if not name or not file.exists():
            return None
        os.utime(file)
        return file

    async def _fetch(self, lora: Lora) -> Path:
        try:
            data = await self.claims.fetch(lora.uri, max_bytes=self.settings.lora_max_bytes)
        except PermanentError as error:
            if error.code == "asset-missing":
                raise PermanentError("lora-missing", f"there are no LoRA weights at {named(lora.uri)}: {error}") from None
            if error.code == "asset-too-large":
                raise invalid(named(lora.uri), str(error)) from None
            raise
        self.fetches += 1
        file = await asyncio.to_thread(self._keep, lora, data)
        self._known[lora.uri] = (time.monotonic(), file.stem)
        return file

    def _keep(self, lora: Lora, data: bytes) -> Path:
        """Check the bytes, then give them their name. What is refused is not kept."""
        sha256 = hashlib.sha256(data).hexdigest()
        if lora.sha256 and lora.sha256 != sha256:
            raise invalid(named(lora.uri), f"its sha256 is {sha256}, the order says {lora.sha256}")
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / f".{sha256}.{os.getpid()}"
        fresh.write_bytes(data)
        try:
            check_lora(fresh, named(lora.uri), max_bytes=self.settings.lora_max_bytes, max_rank=self.settings.lora_max_rank)
            file = fresh.rename(self.folder / f"{sha256}.safetensors")
        finally:
            fresh.unlink(missing_ok=True)
        log.info("lora.kept", sha256=sha256, bytes=len(data))
        self._make_room(file)
        return file

    def _make_room(self, newest: Path) -> None:
        files = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in files)
        for file in files:
            if total <= self.settings.lora_cache_bytes or file == newest:
                return
            total -= file.stat().st_size
            file.unlink(missing_ok=True)


def named(uri: str) -> str:
    """An address as it may stand in a message or a log: a signature in its query is a secret."""
    parts = urlsplit(uri)
    return parts._replace(query="", netloc=parts.netloc.rpartition("@")[2]).geturl()
