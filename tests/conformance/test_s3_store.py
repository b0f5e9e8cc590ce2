"""Behaviour of buckets alone, against two real S3 servers."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from bus.errors import PermanentError, TemporaryError
from bus.storage.claim_store import open_claim_store
from bus.storage.s3_client import open_s3_client
from bus.storage.settings import StoreSettings
from tests.support.tcp_proxy import open_proxy

PICTURE = b"\x89PNG" + bytes(1000)
Settings = dict[str, Any]


@pytest.fixture(params=["s3", "ceph"])
def any_s3(request: pytest.FixtureRequest) -> Settings:
    """The settings of a bucket of moto's server, or of Ceph's."""
    settings: Settings = request.getfixturevalue(f"{request.param}_settings")
    return settings


async def put_object(settings: Settings, uri: str, data: bytes) -> None:
    """Write to S3 as another client."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    async with open_s3_client(StoreSettings(**settings)) as client:
        await client.create_bucket(Bucket=bucket)
        await client.put_object(Bucket=bucket, Key=key, Body=data)


async def test_object_has_content_type_and_immutable_cache_control(any_s3: Settings) -> None:
    async with open_claim_store(StoreSettings(**any_s3)) as claims:
        claim = await claims.put("generations/gen-7.png", PICTURE, media_type="image/png", tenant=None)
        assert claim.uri == "s3://gallery/atelier/generations/gen-7.png"
        async with httpx.AsyncClient() as outside:
            response = await outside.get(await claims.url(claim, tenant=None))
    assert response.content == PICTURE
    assert response.headers["Content-Type"] == "image/png"
    assert "immutable" in response.headers["Cache-Control"]


async def test_url_is_presigned_with_expiry(any_s3: Settings) -> None:
    async with open_claim_store(StoreSettings(**any_s3, s3_presign_seconds=60)) as claims:
        url = await claims.url(await claims.write(PICTURE, media_type="image/png", tenant=None), tenant=None)
    assert "X-Amz-Expires=60" in urlsplit(url).query
    assert "X-Amz-Signature" in urlsplit(url).query


async def test_public_url_has_no_signature(any_s3: Settings) -> None:
    async with open_claim_store(StoreSettings(**any_s3, store_public_url="https://cdn.example")) as claims:
        claim = await claims.put("generations/gen-7.png", PICTURE, media_type="image/png", tenant=None)
        assert await claims.url(claim, tenant=None) == "https://cdn.example/atelier/generations/gen-7.png"


async def test_externally_modified_object_is_corrupt(any_s3: Settings) -> None:
    async with open_claim_store(StoreSettings(**any_s3)) as claims:
        claim = await claims.write(PICTURE, media_type="image/png", tenant=None)
        await put_object(any_s3, claim.uri, PICTURE[::-1])
        with pytest.raises(PermanentError) as error:
            await claims.read(claim, tenant=None)
    assert error.value.code == "claim-corrupt"


async def test_fetch_from_other_bucket_needs_setting(any_s3: Settings) -> None:
    address = "s3://models/style_7/lora weights.safetensors"
    await put_object(any_s3, address, b"weights")
    async with open_claim_store(StoreSettings(**any_s3)) as claims:
        with pytest.raises(PermanentError, match="ASSET_BUCKETS"):
            await claims.fetch(address, max_bytes=100, tenant=None)
    for allowed_bucket in ("models", "*"):
        async with open_claim_store(StoreSettings(**any_s3, asset_buckets=allowed_bucket)) as claims:
            assert await claims.fetch(address, max_bytes=100, tenant=None) == b"weights"


async def test_folder_store_fetches_from_allowed_bucket(any_s3: Settings, tmp_path: Path) -> None:
    await put_object(any_s3, "s3://gallery/lora.safetensors", b"weights")
    async with open_claim_store(StoreSettings(**(any_s3 | {"store_url": tmp_path.as_uri()}), asset_buckets=("gallery",))) as claims:
        assert await claims.fetch("s3://gallery/lora.safetensors", max_bytes=7, tenant=None) == b"weights"
        for address, code in [("s3://gallery/none", "asset-missing"), ("s3://other/x", "asset-refused")]:
            with pytest.raises(PermanentError) as error:
                await claims.fetch(address, max_bytes=7, tenant=None)
            assert error.value.code == code


async def test_unavailable_store_raises_temporary_error(any_s3: Settings, unused_tcp_port: int) -> None:
    async with open_claim_store(StoreSettings(**any_s3)) as claims:
        claim = await claims.write(PICTURE, media_type="image/png", tenant=None)
    unreachable = any_s3 | {"AWS_S3_ENDPOINT_URL": f"http://127.0.0.1:{unused_tcp_port}"}
    async with open_claim_store(StoreSettings(**unreachable)) as claims:
        for attempt in (lambda: claims.read(claim, tenant=None), lambda: claims.write(PICTURE, media_type="image/png", tenant=None)):
            with pytest.raises(TemporaryError):
                await attempt()


async def test_missing_bucket_is_temporary_error_for_writes(any_s3: Settings) -> None:
    async with open_claim_store(StoreSettings(**(any_s3 | {"store_url": "s3://nowhere"}))) as claims:
        with pytest.raises(TemporaryError, match="NoSuchBucket"):
            await claims.write(PICTURE, media_type="image/png", tenant=None)


def test_bucket_setting_alone_selects_s3_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_URL", raising=False)
    monkeypatch.setenv("AWS_STORAGE_BUCKET_NAME", "stylelicense-media")
    assert StoreSettings().store_url == "s3://stylelicense-media"
    monkeypatch.setenv("STORE_URL", "file:///var/atelier")
    assert StoreSettings().store_url == "file:///var/atelier"


def test_credentials_are_masked_in_settings() -> None:
    assert "s3cr3t" not in repr(StoreSettings(store_url="s3://x", aws_secret_access_key="s3cr3t"))


async def test_silent_store_times_out(any_s3: Settings) -> None:
    """As behind a half-open connection, also while a request body waits for `100 Continue`."""
    async with open_proxy(urlsplit(any_s3["AWS_S3_ENDPOINT_URL"]).port or 0) as proxy:
        proxy.flow_enabled.clear()
        settings = any_s3 | {"AWS_S3_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", "store_timeout_seconds": 1.0}
        async with open_claim_store(StoreSettings(**settings)) as claims, asyncio.timeout(5):
            with pytest.raises(TemporaryError, match="no response in time"):
                await claims.write(PICTURE, media_type="image/png", tenant=None)
