"""LoRA weights on the local disk, named by their sha256, and the `adapter_config.json` beside their address.

Both are fetched when the order arrives, not when the device starts it.
"""

import asyncio
import hashlib
import os
import re
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from actors.engines.diffusion.lora.strength import (
    ADAPTER_CONFIG,
    MAX_CONFIG_BYTES,
    AdapterConfig,
    invalid_lora,
    lora_is_gone,
    parse_adapter_config,
)
from actors.engines.diffusion.lora.validation import validate_lora
from actors.engines.diffusion.requests import LoraFile
from actors.engines.settings import ImageSettings
from bus.errors import PermanentError, TemporaryError
from bus.net.addresses import redact_uri, split_address
from bus.storage.claim_store import ClaimStore
from bus.storage.http_download import describe_page
from bus.storage.object_keys import tenant_prefix
from contracts.image import AlphaSource, Lora

log = structlog.get_logger()

Source = tuple[str | None, str, str | None]
"""Tenant, address, sha256 of the order: what one tenant may fetch, another may not; without a sha256 an order gets what is there now."""
SOURCE_SECONDS = 300.0
"""How long an address without a sha256 is taken to hold the same bytes, and any address the same configuration."""
MAX_SOURCES = 1024
MAX_NAMES = 20
"""Of IMAGE_LORAS in a message."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The weights in the folder of an adapter, as PEFT names them."""


@dataclass(frozen=True)
class KnownSource:
    """What was at an address. `config`: None when there is none, or when the weights say their alpha themselves."""

    seen_at: float
    sha256: str
    config: AdapterConfig | None


class LoraFileCache:
    """Fetches and caches LoRA files. A tenant's concurrent orders with the same address share one fetch."""

    def __init__(self, claims: ClaimStore, settings: ImageSettings) -> None:
        self.claims, self.settings = claims, settings
        self.folder = settings.local_cache.expanduser() / "loras"
        self.fetch_count = 0
        self._known: OrderedDict[Source, KnownSource] = OrderedDict()
        self._locks: WeakValueDictionary[Source, asyncio.Lock] = WeakValueDictionary()

    async def fetch(self, lora: Lora, tenant: str | None) -> LoraFile:
        """Raises PermanentError("lora-missing" · "lora-invalid" · "lora-unknown"), TemporaryError when the store is unavailable."""
        if lora.name is None:
            assert lora.uri is not None
            return await self._fetch_address(lora, (tenant, weights_address(lora.uri), lora.sha256), redact_uri(lora.uri))
        file = await self._fetch_named(lora, lora.name)
        if lora.sha256 not in (None, file.sha256):
            raise invalid_lora(file.origin, f"its sha256 is {file.sha256}, the order says {lora.sha256}")
        return file

    async def _fetch_named(self, lora: Lora, name: str) -> LoraFile:
        """The operator named the address, so it is fetched with the rights of the installation itself, and named to nobody.

        The sha256 of the order chooses no file here, since it would find any that the installation itself has fetched.
        """
        if name not in self.settings.loras:
            names = ", ".join(list(self.settings.loras)[:MAX_NAMES]) or "none"
            raise PermanentError("lora-unknown", f"{name!r} is not in IMAGE_LORAS: {names}")
        try:
            return await self._fetch_address(lora, (None, weights_address(self.settings.loras[name]), None), name)
        except PermanentError as error:
            if error.code not in ("lora-missing", "asset-refused"):
                raise
            log.error("lora.configured_is_missing", name=name, reason=str(error))
            raise PermanentError("lora-missing", f"the weights of {name!r} cannot be read: see IMAGE_LORAS of the worker") from None
        except TemporaryError as error:
            log.warning("lora.configured_is_unavailable", name=name, reason=str(error))
            raise TemporaryError(f"the weights of {name!r} cannot be read at present", delay=error.delay, code=error.code) from None

    async def _fetch_address(self, lora: Lora, source: Source, origin: str) -> LoraFile:
        tenant, _, wanted = source
        async with self._locks.setdefault(source, asyncio.Lock()):
            known = self._recall(source)
            sha256 = wanted or (known.sha256 if known else None)
            file = await asyncio.to_thread(self._cached, sha256, tenant) or await self._fetch_weights(source, origin)
            if known is None or known.sha256 != file.stem:
                known = KnownSource(time.monotonic(), file.stem, await self._fetch_config(file, source, origin))
                self._remember(source, known)
        alpha, alpha_from = self._assumed_alpha(lora)
        return LoraFile(file, file.stem, lora.scale, origin, known.config, alpha, alpha_from)

    def _assumed_alpha(self, lora: Lora) -> tuple[float | None, AlphaSource]:
        """For layers of which nothing at the address says alpha."""
        if lora.alpha is not None:
            return lora.alpha, "order"
        return self.settings.lora_alpha, "assumed" if self.settings.lora_alpha is None else "setting"

    def _recall(self, source: Source) -> KnownSource | None:
        known = self._known.get(source)
        return known if known and time.monotonic() - known.seen_at < SOURCE_SECONDS else None

    def _remember(self, source: Source, known: KnownSource) -> None:
        self._known[source] = known
        self._known.move_to_end(source)
        while len(self._known) > MAX_SOURCES:
            self._known.popitem(last=False)

    def _cached(self, sha256: str | None, tenant: str | None) -> Path | None:
        file = self._tenant_folder(tenant) / f"{sha256}.safetensors"
        try:
            os.utime(file)
        except FileNotFoundError:
            return None
        return file

    async def _fetch_weights(self, source: Source, origin: str) -> Path:
        tenant, address, wanted = source
        try:
            data = await self.claims.fetch(address, tenant=tenant, max_bytes=self.settings.lora_max_bytes)
        except PermanentError as error:
            if error.code in ("asset-missing", "asset-forbidden"):
                raise PermanentError("lora-missing", f"there are no readable LoRA weights at {redact_uri(address)}: {error}") from None
            if error.code == "asset-too-large":
                raise invalid_lora(origin, f"it has more than {self.settings.lora_max_bytes} bytes (IMAGE_LORA_MAX_BYTES)") from None
            raise
        if page := describe_page(data):
            raise invalid_lora(origin, page)
        self.fetch_count += 1
        return await asyncio.to_thread(self._store, origin, wanted, tenant, data)

    async def _fetch_config(self, file: Path, source: Source, origin: str) -> AdapterConfig | None:
        """The configuration beside the weights, unless these say alpha of all layers. None: there is none, or it may not be read.

        Stores that do not let their objects be listed answer "forbidden" for a missing one, and so do servers of signed addresses.
        """
        tenant, address, _ = source
        limits = {"max_bytes": self.settings.lora_max_bytes, "max_rank": self.settings.lora_max_rank}
        try:
            info = await asyncio.to_thread(partial(validate_lora, file, origin, **limits))
        except FileNotFoundError:
            raise lora_is_gone(origin) from None
        if info.has_alphas:
            return None
        try:
            data = await self.claims.fetch(sibling_address(address, ADAPTER_CONFIG), tenant=tenant, max_bytes=MAX_CONFIG_BYTES)
        except PermanentError as error:
            if error.code == "asset-too-large":
                raise invalid_lora(origin, f"{ADAPTER_CONFIG} beside it is larger than {MAX_CONFIG_BYTES} bytes") from None
            if error.code not in ("asset-missing", "asset-forbidden", "asset-refused"):
                raise
            log.warning("lora.alpha_unknown", origin=origin, sha256=file.stem, reason=str(error))
            return None
        if address.startswith("http") and (page := describe_page(data)):  # Some web servers answer so to any address.
            log.warning("lora.alpha_unknown", origin=origin, sha256=file.stem, reason=page)
            return None
        return await asyncio.to_thread(parse_adapter_config, data, origin)

    def _tenant_folder(self, tenant: str | None) -> Path:
        """Each tenant has its own copies: the sha256 of another tenant's weights, which its pictures publish, is no way to use them."""
        return self.folder / tenant_prefix(tenant)

    def _store(self, origin: str, wanted: str | None, tenant: str | None, data: bytes) -> Path:
        """Validate the bytes and store them under their sha256. Invalid ones are not stored."""
        sha256 = hashlib.sha256(data).hexdigest()
        if wanted and wanted != sha256:
            raise invalid_lora(origin, f"its sha256 is {sha256}, the order says {wanted}")
        folder = self._tenant_folder(tenant)
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{sha256}.")  # Two addresses may hold the same bytes.
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            validate_lora(temporary, origin, max_bytes=self.settings.lora_max_bytes, max_rank=self.settings.lora_max_rank)
            file = temporary.replace(folder / f"{sha256}.safetensors")
        finally:
            temporary.unlink(missing_ok=True)
        log.info("lora.cached", sha256=sha256, bytes=len(data))
        self._evict_until_fits(file)
        return file

    def _evict_until_fits(self, newest: Path) -> None:
        files = sorted(cached_files(self.folder))
        total = sum(size for _, size, _ in files)
        for _, size, file in files:
            if total <= self.settings.lora_cache_bytes or file == newest:
                return
            total -= size
            file.unlink(missing_ok=True)


def cached_files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each was last used, its bytes and its path. Another fetch may evict some meanwhile."""
    for file in folder.rglob("*.safetensors"):
        with suppress(FileNotFoundError):
            status = file.stat()
            yield status.st_mtime, status.st_size, file


def weights_address(uri: str) -> str:
    """The address of the weights; one that ends in a slash is the folder of an adapter."""
    return f"{uri}{ADAPTER_WEIGHTS}" if uri.endswith("/") else uri


def sibling_address(uri: str, name: str) -> str:
    """The address of another file in the same folder, with the same query. In a path of http a slash may be written as `%2F`."""
    parts = split_address(uri)
    folder = re.fullmatch(r"(?i)((?:.*(?:/|%2F))?).*", parts.path, re.DOTALL)
    return parts._replace(path=f"{folder[1] if folder else ''}{name}", fragment="").geturl()
