"""Copies all objects under an `s3://` or `gs://` prefix into a folder, once: with checksums, resumed after an interruption.

A file is written as `.part`, verified, and renamed; a complete folder has a marker file. Concurrent callers, in this process or others,
wait for the same copy.
"""

import asyncio
import base64
import fcntl
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
from anyio import to_thread

from bus.errors import PermanentError, TemporaryError
from bus.net.ssrf import describe_http_error
from bus.storage.gcs import GcsCredentials, GcsSettings
from bus.storage.s3_client import open_s3_client
from bus.storage.s3_errors import error_code, translate_s3_errors
from bus.storage.settings import StoreSettings

OnProgress = Callable[[int, int], None]
"""Called with the bytes copied so far and the bytes in total."""

COMPLETE_MARKER = ".whole.json"
MD5 = re.compile("[0-9a-f]{32}")
NO_VERSION_2 = frozenset({"NotImplemented", "InvalidArgument", "MethodNotAllowed", "InvalidRequest", "501", "405"})
"""What servers that know only the first version of the listing answer to the second."""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RemoteObject:
    """One object under the prefix; `name` is relative to it. `md5`: hex; None for an S3 object of several parts, or encrypted."""

    key: str
    name: str
    size: int
    md5: str | None


class ObjectSource(Protocol):
    async def list_objects(self) -> list[RemoteObject]: ...

    def read(self, entry: RemoteObject, start: int) -> AsyncIterator[bytes]: ...

    def with_checksum(self, entry: RemoteObject) -> RemoteObject:
        """The object as it was read: without an md5 where the server's tag is none."""
        ...


async def sync_prefix(url: str, folder: Path, on_progress: OnProgress = lambda done, total: None) -> None:
    """Copy the prefix unless the folder is complete.

    Raises PermanentError("model-missing" · "model-corrupt"), TemporaryError when the store is unavailable.
    """
    await to_thread.run_sync(lambda: folder.mkdir(parents=True, exist_ok=True))
    async with folder_lock(folder):
        marker = folder / COMPLETE_MARKER
        if marker.exists():
            return
        async with open_source(url) as source:
            entries = await source.list_objects()
            if not entries:
                raise PermanentError("model-missing", f"There are no objects under {url}.")
            await _copy_all(source, entries, folder, on_progress)
        marker.write_text(json.dumps({"url": url, "files": {entry.name: entry.size for entry in entries}}))


async def _copy_all(source: ObjectSource, entries: list[RemoteObject], folder: Path, on_progress: OnProgress) -> None:
    done, total = 0, sum(entry.size for entry in entries)
    on_progress(0, total)
    for entry in entries:
        target = target_path(folder, entry.name)
        if not (target.exists() and target.stat().st_size == entry.size):
            await _copy_object(source, entry, target, lambda here, before=done: on_progress(before + here, total))  # type: ignore[misc]
        done += entry.size
        on_progress(done, total)


async def _copy_object(source: ObjectSource, entry: RemoteObject, target: Path, on_progress: Callable[[int], None]) -> None:
    """Copy one file, resuming a partial one; a partial file that turns out to be corrupt is copied again from the start."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    start = part.stat().st_size if part.exists() and part.stat().st_size <= entry.size else 0
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        if start < entry.size:
            async for chunk in source.read(entry, start):
                await to_thread.run_sync(file.write, chunk)
                on_progress(file.tell())
    try:
        await to_thread.run_sync(verify, part, source.with_checksum(entry))
    except PermanentError:
        if not start:
            raise
        await _copy_object(source, entry, target, on_progress)
        return
    part.rename(target)


def verify(part: Path, entry: RemoteObject) -> None:
    """Check size and md5. A corrupt file is removed, so that the next attempt starts anew. Raises PermanentError("model-corrupt")."""
    size = part.stat().st_size
    with part.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest() if entry.md5 else None  # the stores offer no stronger checksum
    if size != entry.size or md5 != entry.md5:
        part.unlink()
        raise PermanentError(
            "model-corrupt", f"{entry.key} arrived with {size} bytes and md5 {md5} instead of {entry.size} and {entry.md5}. Try again."
        )


def target_path(folder: Path, name: str) -> Path:
    """The path of a file. Raises PermanentError("model-corrupt") for a name that leaves the folder."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise PermanentError("model-corrupt", f"the object {name!r} leaves its prefix")
    return target


@asynccontextmanager
async def folder_lock(folder: Path) -> AsyncIterator[None]:
    """A lock among all processes of this machine."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.2)
        yield


@asynccontextmanager
async def open_source(url: str) -> AsyncIterator[ObjectSource]:
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    if scheme == "s3":
        # Of these settings only those of the server matter.
        settings = StoreSettings.model_validate({"store_url": "file:///"})
        async with open_s3_client(settings) as client:
            yield S3Prefix(client, bucket, prefix, settings.aws_s3_endpoint_url)
        return
    gcs = GcsSettings()
    async with httpx.AsyncClient(timeout=httpx.Timeout(60, connect=10)) as http:
        http.headers.update(await GcsCredentials(gcs).headers())
        yield GcsPrefix(http, gcs, bucket, prefix)


class S3Prefix:
    def __init__(self, client: Any, bucket: str, prefix: str, server: str | None = None) -> None:
        self._client, self._bucket, self._prefix, self._server = client, bucket, prefix, server
        self._encrypted: set[str] = set()

    async def list_objects(self) -> list[RemoteObject]:
        objects = []
        with translate_s3_errors(
            f"listing s3://{self._bucket}/{self._prefix}",
            server=self._server,
            on_missing=self._missing_error,
            on_refused=self._missing_error,
        ):
            async for page in self._pages():
                for item in page.get("Contents", []):
                    tag = str(item.get("ETag", "")).removeprefix("W/").strip('"').lower()
                    name = item["Key"].removeprefix(self._prefix)
                    if name and not name.endswith("/"):
                        objects.append(RemoteObject(item["Key"], name, item["Size"], tag if MD5.fullmatch(tag) else None))
        return objects

    async def _pages(self) -> AsyncIterator[dict[str, Any]]:
        """By the listing of version 2; by that of version 1 where the server refuses it, or does not say how it goes on."""
        from botocore.exceptions import ClientError

        place = {"Bucket": self._bucket, "Prefix": self._prefix}
        try:
            async for page in self._client.get_paginator("list_objects_v2").paginate(**place):
                if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                    break
                yield page
            else:
                return
        except ClientError as error:
            if error_code(error) not in NO_VERSION_2:
                raise
        async for page in self._client.get_paginator("list_objects").paginate(**place):
            yield page

    def _missing_error(self) -> PermanentError:
        return PermanentError("model-missing", f"s3://{self._bucket}/{self._prefix} does not exist, or access is denied.")

    async def read(self, entry: RemoteObject, start: int) -> AsyncIterator[bytes]:
        with translate_s3_errors(
            f"reading s3://{self._bucket}/{entry.key}",
            server=self._server,
            on_missing=self._missing_error,
            on_refused=self._missing_error,
        ):
            rest = {"Range": f"bytes={start}-"} if start else {}
            response = await self._client.get_object(Bucket=self._bucket, Key=entry.key, **rest)
            if str(response.get("ServerSideEncryption", "")).startswith("aws:kms") or response.get("SSECustomerAlgorithm"):
                self._encrypted.add(entry.key)
            # A server that knows no ranges sends the object from its start.
            skipped = start if response["ResponseMetadata"]["HTTPStatusCode"] == 200 else 0
            async with response["Body"] as body:
                async for chunk in body.content.iter_chunked(CHUNK_BYTES):
                    yield chunk[skipped:]
                    skipped = max(0, skipped - len(chunk))

    def with_checksum(self, entry: RemoteObject) -> RemoteObject:
        """The ETag of an object that is encrypted with a key of its own has the form of an md5, and is none."""
        return replace(entry, md5=None) if entry.key in self._encrypted else entry


class GcsPrefix:
    def __init__(self, http: httpx.AsyncClient, settings: GcsSettings, bucket: str, prefix: str) -> None:
        self._http, self._settings, self._bucket, self._prefix = http, settings, bucket, prefix

    async def list_objects(self) -> list[RemoteObject]:
        objects, token = [], ""
        while True:
            params = {"prefix": self._prefix, "fields": "items(name,size,md5Hash),nextPageToken"} | ({"pageToken": token} if token else {})
            page = (await self._get(self._settings.object_url(self._bucket, "").rstrip("/"), params)).json()
            for item in page.get("items", []):
                name = item["name"].removeprefix(self._prefix)
                md5 = base64.b64decode(item["md5Hash"]).hex() if "md5Hash" in item else None
                if name and not name.endswith("/"):
                    objects.append(RemoteObject(item["name"], name, int(item["size"]), md5))
            token = page.get("nextPageToken", "")
            if not token:
                return objects

    async def _get(self, url: str, params: dict[str, str]) -> httpx.Response:
        try:
            response = await self._http.get(url, params=params)
        except httpx.HTTPError as error:
            raise TemporaryError(f"gs://{self._bucket} did not respond: {describe_http_error(error)}", code="model-unreachable") from error
        self._raise_for_status(response)
        return response

    def _raise_for_status(self, response: httpx.Response) -> None:
        if response.status_code in (401, 403, 404):
            raise PermanentError(
                "model-missing",
                f"gs://{self._bucket}/{self._prefix} responded with {response.status_code}: it is missing, or GCS_TOKEN may not read it.",
            )
        if response.status_code not in (200, 206):
            raise TemporaryError(f"gs://{self._bucket} responded with {response.status_code}", code="model-unreachable")

    async def read(self, entry: RemoteObject, start: int) -> AsyncIterator[bytes]:
        url = self._settings.object_url(self._bucket, entry.key)
        try:
            async with self._http.stream("GET", url, params={"alt": "media"}, headers={"Range": f"bytes={start}-"}) as response:
                self._raise_for_status(response)
                skipped = start if response.status_code == 200 else 0
                async for chunk in response.aiter_raw():
                    yield chunk[skipped:]
                    skipped = max(0, skipped - len(chunk))
        except httpx.HTTPError as error:
            raise TemporaryError(
                f"gs://{self._bucket}/{entry.key} was interrupted: {describe_http_error(error)}", code="model-unreachable"
            ) from error

    def with_checksum(self, entry: RemoteObject) -> RemoteObject:
        return entry
