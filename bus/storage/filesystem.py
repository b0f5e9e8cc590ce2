"""A folder as the claim store: `claims/ab/abcdef….png` for claims, any other key for `put`. Files are written atomically."""

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog
from anyio import to_thread

from bus.errors import PermanentError, TemporaryError
from bus.storage.fetcher import AssetFetcher
from bus.storage.object_keys import claim_key, safe_key, sha256_hex, verify_claim
from contracts.claim import Claim

log = structlog.get_logger()


class FilesystemClaimStore:
    """Files below one root. File access runs in threads, so that a slow disk never blocks the event loop."""

    def __init__(self, root: Path, fetcher: AssetFetcher, public_url: str | None = None) -> None:
        self._root, self._fetcher, self._public_url = root, fetcher, public_url

    async def read(self, claim: Claim) -> bytes:
        return verify_claim(claim, await to_thread.run_sync(read_file, self._root, claim_path(claim.uri, self._root), claim.size))

    async def write(self, data: bytes, *, media_type: str, width: int | None = None, height: int | None = None) -> Claim:
        sha256 = sha256_hex(data)
        path = await to_thread.run_sync(write_file_atomically, self._root, claim_key(sha256, media_type), data)
        log.debug("claim.written", uri=path.as_uri(), size=len(data))
        return Claim(uri=path.as_uri(), sha256=sha256, media_type=media_type, size=len(data), width=width, height=height)

    async def put(self, key: str, data: bytes, *, media_type: str) -> Claim:
        path = await to_thread.run_sync(write_file_atomically, self._root, safe_key(key), data)
        claim = Claim(uri=path.as_uri(), sha256=sha256_hex(data), media_type=media_type, size=len(data))
        await self.read(claim)
        return claim

    async def fetch(self, uri: str, *, max_bytes: int) -> bytes:
        return await self._fetcher.fetch(uri, max_bytes=max_bytes)

    async def check(self) -> None:
        await to_thread.run_sync(check_writable, self._root)

    async def url(self, claim: Claim) -> str:
        path = claim_path(claim.uri, self._root)
        if self._public_url is None:
            return path.as_uri()
        return f"{self._public_url.rstrip('/')}/{path.relative_to(self._root.resolve()).as_posix()}"


def claim_path(uri: str, root: Path) -> Path:
    """The file behind a `file://` address. Raises PermanentError("claim-refused") when it resolves outside the root."""
    url = urlsplit(uri)
    path = unquote(url.path)
    if url.scheme == "file" and url.netloc in ("", "localhost") and "\0" not in path:
        resolved = Path(path).resolve()
        if resolved.is_relative_to(root.resolve()):
            return resolved
    raise PermanentError("claim-refused", f"{uri[:200]!r} is not in this store, {root.as_uri()}. Do all actors use the same STORE_URL?")


def read_file(root: Path, path: Path, size: int) -> bytes:
    """The bytes of a file; b"" when it is not of this size, so that it is not read for nothing."""
    try:
        return path.read_bytes() if path.stat().st_size == size else b""
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        if not root.is_dir():
            raise TemporaryError(f"the store's folder {root} is unavailable: {error}") from error
        raise PermanentError("claim-missing", f"No file at {path}: it was removed, or never written to this store.") from error
    except OSError as error:
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
