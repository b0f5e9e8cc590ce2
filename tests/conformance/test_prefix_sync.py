"""Copying a prefix of a bucket: once for concurrent callers, resumed after interruptions, verified; for each kind of bucket."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest

from bus.errors import PermanentError, TemporaryError
from bus.storage.prefix_sync import COMPLETE_MARKER, sync_prefix
from tests.support.webhook_backend import read_request

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4096, "sub/vocab.txt": "한글".encode()}


@dataclass
class GoogleBucket:
    """Google's JSON API for one bucket, on a real socket. `break_off`: close after so many bytes of the next media response."""

    objects: dict[str, bytes]
    break_off: int | None = None
    reads: list[tuple[str, int]] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_request(reader)
                url = urlsplit(request.path)
                query = parse_qs(url.query)
                if query.get("alt") == ["media"]:
                    await self._media(writer, unquote(url.path.rpartition("/")[2]), int(request.headers["range"][6:-1]))
                else:
                    self._list(writer, query["prefix"][0], query.get("pageToken", ["0"])[0])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _list(self, writer: asyncio.StreamWriter, prefix: str, page: str) -> None:
        """One object a page."""
        names = [name for name in sorted(self.objects) if name.startswith(prefix)]
        listed = names[int(page) : int(page) + 1]
        items = [
            {
                "name": name,
                "size": str(len(self.objects[name])),
                "md5Hash": base64.b64encode(hashlib.md5(self.objects[name]).digest()).decode(),
            }
            for name in listed
        ]
        next_page = {"nextPageToken": str(int(page) + 1)} if int(page) + 1 < len(names) else {}
        body = json.dumps({"items": items} | next_page).encode()
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    async def _media(self, writer: asyncio.StreamWriter, name: str, start: int) -> None:
        self.reads.append((name, start))
        body = self.objects[name][start:]
        writer.write(f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        if self.break_off is not None and len(body) > self.break_off:
            writer.write(body[: self.break_off])
            self.break_off = None
            await writer.drain()
            raise ConnectionError
        writer.write(body)


@asynccontextmanager
async def open_google(objects: dict[str, bytes]) -> AsyncIterator[GoogleBucket]:
    bucket = GoogleBucket(objects)
    server = await asyncio.start_server(bucket.serve, "127.0.0.1", 0)
    bucket.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield bucket
    finally:
        server.close()


@pytest.fixture(autouse=True)
async def google(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GoogleBucket]:
    objects = {f"final/{name}": data for name, data in FILES.items()} | {"finally/other": b"not ours"}
    async with open_google(objects) as bucket:
        monkeypatch.setenv("GCS_API_URL", bucket.url)
        monkeypatch.setenv("GCS_TOKEN", "token")
        yield bucket


@pytest.fixture(params=["gs", "s3"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "gs":
        return "gs://skin/final"
    endpoint, bucket = request.getfixturevalue("s3_endpoint"), request.getfixturevalue("bucket")
    environment = {
        "AWS_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_S3_REGION_NAME": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, data in FILES.items():
        httpx.put(f"{endpoint}/{bucket}/final/{name}", content=data).raise_for_status()
    httpx.put(f"{endpoint}/{bucket}/finally/other", content=b"not ours").raise_for_status()
    return f"s3://{bucket}/final/"


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE_MARKER
    }


async def test_prefix_is_copied_with_progress_reports(url: str, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []

    await sync_prefix(url, tmp_path / "model", lambda done, total: reports.append((done, total)))

    total = sum(map(len, FILES.values()))
    assert files_in(tmp_path / "model") == FILES
    assert (reports[0], reports[-1]) == ((0, total), (total, total))
    assert reports == sorted(reports)


async def test_partial_file_is_resumed_and_mismatched_file_restarted(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.part").write_bytes(FILES["model.safetensors"][:1000])
    (folder / "config.json.part").write_bytes(b"[")

    await sync_prefix(url, folder)

    assert files_in(folder) == FILES


async def test_empty_prefix_raises_named_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(PermanentError) as refused:
        await sync_prefix(url.replace("final", "absent"), tmp_path / "model")

    assert refused.value.code == "model-missing"


async def test_concurrent_syncs_share_one_copy(google: GoogleBucket, tmp_path: Path) -> None:
    await asyncio.gather(*(sync_prefix("gs://skin/final", tmp_path / "model") for _ in range(5)))

    assert sorted(google.reads) == sorted((f"final/{name}", 0) for name in FILES)


async def test_interrupted_copy_resumes_at_offset(google: GoogleBucket, tmp_path: Path) -> None:
    google.break_off = 600_000
    with pytest.raises(TemporaryError) as broken:
        await sync_prefix("gs://skin/final", tmp_path / "model")
    await sync_prefix("gs://skin/final", tmp_path / "model")

    assert broken.value.code == "model-unreachable"
    assert files_in(tmp_path / "model") == FILES
    starts = [start for name, start in google.reads if name.endswith("safetensors")]
    assert starts[0] == 0
    assert 0 < starts[1] <= 600_000


async def test_file_with_wrong_digest_is_discarded(google: GoogleBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send_media = google._media

    async def send_zeros(writer: asyncio.StreamWriter, name: str, start: int) -> None:
        google.objects = {name: bytes(len(data)) for name, data in google.objects.items()}
        await send_media(writer, name, start)

    monkeypatch.setattr(google, "_media", send_zeros)
    with pytest.raises(PermanentError) as refused:
        await sync_prefix("gs://skin/final", tmp_path / "model")

    assert refused.value.code == "model-corrupt"
    assert "model.safetensors" not in files_in(tmp_path / "model")
    assert not (tmp_path / "model" / COMPLETE_MARKER).exists()
