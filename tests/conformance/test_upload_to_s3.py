"""The upload actor with images in a folder and its target in a bucket, with the source system's names of the settings."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.upload import open_upload
from bus.actor import Resources
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.upload import Upload, UploadDone
from tests.support.actor_context import make_context


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, s3_settings: dict[str, Any], tmp_path: Path) -> None:
    for name in ("AWS_S3_ENDPOINT_URL", "AWS_S3_REGION_NAME"):
        monkeypatch.setenv(name, s3_settings[name])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("STORE_URL", tmp_path.as_uri())
    monkeypatch.setenv("UPLOAD_URL", "s3://gallery")


@pytest.mark.usefixtures("environment")
async def test_repeated_upload_is_one_publicly_readable_object() -> None:
    async with open_claim_store(StoreSettings()) as claims, open_upload(Resources(claims)) as upload, httpx.AsyncClient() as outside:
        image = await claims.write(b"picture", media_type="image/png", tenant=None)
        for _ in range(2):
            done = await upload(Upload(images=[image], name="gen-7"), make_context())
            assert isinstance(done, UploadDone)
            assert done.files[0].uri == "s3://gallery/generations/gen-7.png"
            response = await outside.get(done.result_url)
            assert (response.content, response.headers["Content-Type"]) == (b"picture", "image/png")


@pytest.mark.usefixtures("environment")
async def test_public_url_is_sent_to_backend_when_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPLOAD_PUBLIC_URL", "https://stylelicense-media.s3.amazonaws.com")
    async with open_claim_store(StoreSettings()) as claims, open_upload(Resources(claims)) as upload:
        image = await claims.write(b"picture", media_type="image/png", tenant=None)
        done = await upload(Upload(images=[image], name="gen-7"), make_context())
    assert isinstance(done, UploadDone)
    assert done.result_url == "https://stylelicense-media.s3.amazonaws.com/generations/gen-7.png"
