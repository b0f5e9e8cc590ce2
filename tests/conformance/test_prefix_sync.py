"""Copying a prefix of a bucket: once for concurrent callers, resumed after interruptions, verified; for each kind of bucket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bus.errors import PermanentError, TemporaryError
from bus.storage.prefix_sync import COMPLETE_MARKER, sync_prefix
from tests.support.google_storage import GoogleBucket, open_google

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4096, "sub/vocab.txt": "한글".encode()}


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


async def test_token_does_not_follow_a_redirect(google: GoogleBucket, tmp_path: Path) -> None:
    async with open_google({"final/config.json": b"{}"}) as elsewhere:
        google.redirect = f"{elsewhere.url}/storage/v1/b/b/o/final%2Fconfig.json?alt=media"
        with pytest.raises(TemporaryError, match="302"):
            await sync_prefix("gs://skin/final", tmp_path / "model")
        assert set(google.authorizations) == {"Bearer token"}
        assert elsewhere.authorizations == []
