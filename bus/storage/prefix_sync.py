"""Copy everything under an `s3://` or `gs://` prefix into a folder, once: checksummed, resumed where it broke off.

A file is written beside its place as `.part`, checked, and renamed; a folder that is whole bears a marker. Whoever asks meanwhile, in
this process or another, waits for the same copy.
"""

import asyncio
import base64
import fcntl
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx
from anyio import to_thread
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.errors import PermanentError, TemporaryError
from bus.storage.s3_client import open_s3_client, translate_s3_errors
from bus.storage.settings import StoreSettings

OnProgress = Callable[[int, int], None]
"""Is told the bytes copied and the bytes in all."""

COMPLETE_MARKER = ".whole.json"
CHUNK_BYTES = 1 << 20


class GcsSettings(BaseSettings):
    """How Google's buckets are read. On Google's machines the token comes from the metadata server."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    gcs_api_url: str = Field("https://storage.googleapis.com", description="Google's storage, or a server that speaks its language.")
    gcs_token: SecretStr | None = Field(None, description="An OAuth access token; without one a public bucket can be read.")
    gcs_metadata_url: str = Field(
        "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token",
        description="Where a machine of Google's gets its token.",
    )


@dataclass(frozen=True)
class RemoteObject:
    """One object under the prefix. `md5`: hex, where the store tells it; an S3 object sent in parts has none."""

    key: str
    name: str
    size: int
    md5: str | None


class ObjectSource(Protocol):
    async def list_objects(self) -> list[RemoteObject]: ...

    def read(self, entry: RemoteObject, start: int) -> AsyncIterator[bytes]: ...


async def sync_prefix(url: str, folder: Path, on_progress: OnProgress = lambda done, total: None) -> None:
    """Copy unless it is there already. Raises PermanentError("model-missing" · "model-corrupt"), TemporaryError when the store is away."""
    await to_thread.run_sync(lambda: folder.mkdir(parents=True, exist_ok=True))
    async with folder_lock(folder):
        marker = folder / COMPLETE_MARKER
        if marker.exists():
            return
        async with open_source(url) as source:
            entries = await source.list_objects()
            if not entries:
                raise PermanentError("model-missing", f"Nothing lies under {url}.")
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
    """One file, from where an earlier try broke off; anew when what was there turns out to be wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    start = part.stat().st_size if part.exists() and part.stat().st_size <= entry.size else 0
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        if start < entry.size:
            async for piece in source.read(entry, start):
                await to_thread.run_sync(file.write, piece)
                on_progress(file.tell())
    try:
        await to_thread.run_sync(verify, part, entry)
    except PermanentError:
        if not start:
            raise
        await _copy_object(source, entry, target, on_progress)
        return
    part.rename(target)


def verify(part: Path, entry: RemoteObject) -> None:
    """Size and md5. What is wrong is removed, so that the next try begins anew. Raises PermanentError("model-corrupt")."""
    size = part.stat().st_size
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest() if entry.md5 else None  # the stores tell no stronger sum
    if size != entry.size or found != entry.md5:
        part.unlink()
        raise PermanentError(
            "model-corrupt", f"{entry.key} came with {size} bytes and md5 {found}; {entry.size} and {entry.md5} were told. Ask again."
        )


def target_path(folder: Path, name: str) -> Path:
    """A file's place. Raises PermanentError("model-corrupt") for a name that climbs out of the folder."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise PermanentError("model-corrupt", f"the object {name!r} climbs out of its prefix")
    return target


@asynccontextmanager
async def folder_lock(folder: Path) -> AsyncIterator[None]:
    """One copy at a time, of all processes on this machine."""
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
        # The store's own address plays no part here, but the keys and the region do.
        async with open_s3_client(StoreSettings.model_validate({"store_url": "file:///"})) as client:
            yield S3Prefix(client, bucket, prefix)
        return
    settings = GcsSettings()
    async with httpx.AsyncClient(base_url=settings.gcs_api_url, timeout=httpx.Timeout(60, connect=10)) as http:
        http.headers.update(await gcs_auth_headers(settings))
        yield GcsPrefix(http, bucket, prefix)


class S3Prefix:
    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix

    async def list_objects(self) -> list[RemoteObject]:
        found = []
        with translate_s3_errors(
            f"listing s3://{self._bucket}/{self._prefix}", on_missing=self._missing_error, on_refused=self._missing_error
        ):
            async for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix):
                for item in page.get("Contents", []):
                    tag = item["ETag"].strip('"')
                    name = item["Key"].removeprefix(self._prefix)
                    if name and not name.endswith("/"):
                        found.append(RemoteObject(item["Key"], name, item["Size"], tag if len(tag) == 32 else None))
        return found

    def _missing_error(self) -> PermanentError:
        return PermanentError("model-missing", f"s3://{self._bucket}/{self._prefix} is not there, or may not be read.")

    async def read(self, entry: RemoteObject, start: int) -> AsyncIterator[bytes]:
        with translate_s3_errors(
            f"reading s3://{self._bucket}/{entry.key}", on_missing=self._missing_error, on_refused=self._missing_error
        ):
            answer = await self._client.get_object(Bucket=self._bucket, Key=entry.key, Range=f"bytes={start}-")
            async with answer["Body"] as body:
                async for piece in body.content.iter_chunked(CHUNK_BYTES):
                    yield piece


class GcsPrefix:
    def __init__(self, http: httpx.AsyncClient, bucket: str, prefix: str) -> None:
        self._http, self._bucket, self._prefix = http, bucket, prefix

    async def list_objects(self) -> list[RemoteObject]:
        found, page = [], ""
        while True:
            asked = {"prefix": self._prefix, "fields": "items(name,size,md5Hash),nextPageToken"} | ({"pageToken": page} if page else {})
            answer = await self._get(f"/storage/v1/b/{quote(self._bucket, safe='')}/o", asked)
            said = answer.json()
            for item in said.get("items", []):
                name = item["name"].removeprefix(self._prefix)
                md5 = base64.b64decode(item["md5Hash"]).hex() if "md5Hash" in item else None
                if name and not name.endswith("/"):
                    found.append(RemoteObject(item["name"], name, int(item["size"]), md5))
            page = said.get("nextPageToken", "")
            if not page:
                return found

    async def _get(self, path: str, params: dict[str, str]) -> httpx.Response:
        try:
            answer = await self._http.get(path, params=params)
        except httpx.HTTPError as error:
            raise TemporaryError(f"gs://{self._bucket} did not answer: {error!r}", code="model-unreachable") from error
        self._raise_for_status(answer)
        return answer

    def _raise_for_status(self, response: httpx.Response) -> None:
        if response.status_code in (401, 403, 404):
            raise PermanentError(
                "model-missing",
                f"gs://{self._bucket}/{self._prefix} answered {response.status_code}: not there, or GCS_TOKEN may not read it.",
            )
        if response.status_code not in (200, 206):
            raise TemporaryError(f"gs://{self._bucket} answered {response.status_code}", code="model-unreachable")

    async def read(self, entry: RemoteObject, start: int) -> AsyncIterator[bytes]:
        path = f"/storage/v1/b/{quote(self._bucket, safe='')}/o/{quote(entry.key, safe='')}"
        try:
            async with self._http.stream("GET", path, params={"alt": "media"}, headers={"Range": f"bytes={start}-"}) as answer:
                self._raise_for_status(answer)
                if start and answer.status_code != 206:
                    raise TemporaryError(f"gs://{self._bucket} does not resume {entry.key}", code="model-unreachable")
                async for piece in answer.aiter_raw():
                    yield piece
        except httpx.HTTPError as error:
            raise TemporaryError(f"gs://{self._bucket}/{entry.key} broke off: {error!r}", code="model-unreachable") from error


async def gcs_auth_headers(settings: GcsSettings) -> dict[str, str]:
    """The header that says who we are; empty where nobody tells us, for public buckets."""
    if settings.gcs_token:
        return {"Authorization": f"Bearer {settings.gcs_token.get_secret_value()}"}
    try:
        async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
            answer = await http.get(settings.gcs_metadata_url, headers={"Metadata-Flavor": "Google"})
        return {"Authorization": f"Bearer {answer.json()['access_token']}"} if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError, KeyError):
        return {}
