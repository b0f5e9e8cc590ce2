"""A folder as the claim store; its keys are those of `object_keys.py`. Files are written atomically."""

import os
import tempfile
from pathlib import Path

import structlog
from anyio import to_thread

from bus.errors import PermanentError, TemporaryError
from bus.storage.fetcher import NO_FILE_ERRORS, AssetFetcher
from bus.storage.locations import FolderLocation
from bus.storage.object_keys import claim_key, is_generated_key, put_key, readable_key, sha256_hex, verify_claim
from contracts.claim import Claim

log = structlog.get_logger()


class FilesystemClaimStore:
    """Files below one root. File access runs in threads, so that a slow disk never blocks the event loop."""

    def __init__(self, location: FolderLocation, fetcher: AssetFetcher, public_url: str | None = None) -> None:
        self._location, self._root = location, location.root
        self._fetcher, self._public_url = fetcher, public_url

    async def read(self, claim: Claim, *, tenant: str | None) -> bytes:
        return verify_claim(claim, await to_thread.run_sync(self._read_file, claim, tenant, False))

    async def read_recorded(self, claim: Claim, *, tenant: str | None) -> bytes:
        return verify_claim(claim, await to_thread.run_sync(self._read_file, claim, tenant, True))

    def _read_file(self, claim: Claim, tenant: str | None, recorded: bool) -> bytes:
        key = readable_key(self._location, claim, tenant, recorded=recorded)
        return read_file(self._root, self._root.resolve() / key, claim.size)

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
        key = claim_key(sha256, media_type, tenant=tenant, generated=generated)
        path = await to_thread.run_sync(write_file_atomically, self._root, key, data)
        log.debug("claim.written", uri=path.as_uri(), size=len(data))
        return Claim(uri=path.as_uri(), sha256=sha256, media_type=media_type, size=len(data), width=width, height=height)

    async def is_generated(self, claim: Claim, *, tenant: str | None) -> bool:
        key = await to_thread.run_sync(self._location.key_of, claim.uri)
        return key is not None and is_generated_key(key, tenant)

    async def put(self, key: str, data: bytes, *, tenant: str | None, media_type: str) -> Claim:
        path = await to_thread.run_sync(write_file_atomically, self._root, put_key(key, tenant), data)
        claim = Claim(uri=path.as_uri(), sha256=sha256_hex(data), media_type=media_type, size=len(data))
        await self.read(claim, tenant=tenant)
        return claim

    async def fetch(self, uri: str, *, tenant: str | None, max_bytes: int) -> bytes:
        return await self._fetcher.fetch(uri, tenant=tenant, max_bytes=max_bytes)

    async def fetch_recorded(self, uri: str, *, tenant: str | None, max_bytes: int) -> bytes:
        return await self._fetcher.fetch(uri, tenant=tenant, max_bytes=max_bytes, recorded=True)

    async def check(self) -> None:
        await to_thread.run_sync(check_writable, self._root)

    link_expiry: None = None

    async def url(self, claim: Claim, *, tenant: str | None, permanent: bool = False) -> str:
        key = await to_thread.run_sync(readable_key, self._location, claim, tenant)
        if self._public_url is None:
            return (self._root.resolve() / key).as_uri()
        return f"{self._public_url.rstrip('/')}/{key}"


def read_file(root: Path, path: Path, size: int) -> bytes:
    """The bytes of a file; b"" when it is not of this size, so that it is not read for nothing."""
    try:
        return path.read_bytes() if path.stat().st_size == size else b""
    except OSError as error:
        if not root.is_dir():
            raise TemporaryError(f"the store's folder {root} is unavailable: {error}") from error
        if error.errno in NO_FILE_ERRORS:
            raise PermanentError("claim-missing", f"No file at {path}: it was removed, or never written to this store.") from error
        raise TemporaryError(f"the store cannot be read: {error}") from error


def check_writable(root: Path) -> None:
    """Write one byte to a temporary file. Raises TemporaryError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root, prefix=".checking-") as file:
            file.write(b"?")
            file.flush()
    except OSError as error:
        raise TemporaryError(f"the store's folder {root} cannot be written: {error}") from error


def write_file_atomically(root: Path, key: str, data: bytes) -> Path:
    """Write to a temporary file, sync, then rename: a reader sees the old file or the new one, never a partial one."""
    path = root.resolve() / key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise TemporaryError(f"the store cannot be written: {error}. Is the disk full, or the folder of another user?") from error
    return path
