"""What holds for a bucket alone, against a real S3-speaking server."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from bus.errors import PermanentError, TemporaryError
from bus.s3 import open_s3
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from tests.chaos.proxy import open_proxy

PICTURE = b"\x89PNG" + bytes(1000)
Settings = dict[str, Any]


async def place(settings: Settings, uri: str, data: bytes) -> None:
    """Somebody else writes to S3."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    async with open_s3(StoreSettings(**settings)) as client:
        await client.create_bucket(Bucket=bucket)
        await client.put_object(Bucket=bucket, Key=key, Body=data)


async def test_an_object_says_what_it_is_and_may_be_kept_for_ever(s3_settings: Settings) -> None:
    async with open_claims(StoreSettings(**s3_settings)) as claims:
        claim = await claims.put("generations/gen-7.png", PICTURE, media_type="image/png")
        assert claim.uri == "s3://gallery/atelier/generations/gen-7.png"
        async with httpx.AsyncClient() as outside:
            answer = await outside.get(await claims.url(claim))
    assert answer.content == PICTURE
    assert answer.headers["Content-Type"] == "image/png"
    assert "immutable" in answer.headers["Cache-Control"]


async def test_an_address_is_presigned_and_ends(s3_settings: Settings) -> None:
    async with open_claims(StoreSettings(**s3_settings, s3_presign_seconds=60)) as claims:
        url = await claims.url(await claims.write(PICTURE, media_type="image/png"))
    assert "X-Amz-Expires=60" in urlsplit(url).query
    assert "X-Amz-Signature" in urlsplit(url).query


async def test_a_public_address_carries_no_signature(s3_settings: Settings) -> None:
    async with open_claims(StoreSettings(**s3_settings, store_public_url="https://cdn.example")) as claims:
        claim = await claims.put("generations/gen-7.png", PICTURE, media_type="image/png")
        assert await claims.url(claim) == "https://cdn.example/atelier/generations/gen-7.png"


async def test_bytes_changed_behind_our_back_are_corrupt(s3_settings: Settings) -> None:
    async with open_claims(StoreSettings(**s3_settings)) as claims:
        claim = await claims.write(PICTURE, media_type="image/png")
        await place(s3_settings, claim.uri, PICTURE[::-1])
        with pytest.raises(PermanentError) as error:
            await claims.read(claim)
    assert error.value.code == "claim-corrupt"


async def test_another_bucket_is_fetched_from_only_when_the_settings_name_it(s3_settings: Settings) -> None:
    address = "s3://models/style_7/lora weights.safetensors"
    await place(s3_settings, address, b"weights")
    async with open_claims(StoreSettings(**s3_settings)) as claims:
        with pytest.raises(PermanentError, match="ASSET_BUCKETS"):
            await claims.fetch(address, max_bytes=100)
    for named in ("models", "*"):
        async with open_claims(StoreSettings(**s3_settings, asset_buckets=named)) as claims:
            assert await claims.fetch(address, max_bytes=100) == b"weights"


async def test_a_folder_store_fetches_from_a_named_bucket_too(s3_settings: Settings, tmp_path: Path) -> None:
    await place(s3_settings, "s3://gallery/lora.safetensors", b"weights")
    async with open_claims(StoreSettings(**(s3_settings | {"store_url": tmp_path.as_uri()}), asset_buckets=("gallery",))) as claims:
        assert await claims.fetch("s3://gallery/lora.safetensors", max_bytes=7) == b"weights"
        for address, code in [("s3://gallery/none", "asset-missing"), ("s3://other/x", "asset-refused")]:
            with pytest.raises(PermanentError) as error:
                await claims.fetch(address, max_bytes=7)
            assert error.value.code == code


async def test_a_store_that_is_away_is_temporary(s3_settings: Settings, unused_tcp_port: int) -> None:
    async with open_claims(StoreSettings(**s3_settings)) as claims:
        claim = await claims.write(PICTURE, media_type="image/png")
    away = s3_settings | {"AWS_S3_ENDPOINT_URL": f"http://127.0.0.1:{unused_tcp_port}"}
    async with open_claims(StoreSettings(**away)) as claims:
        for attempt in (lambda: claims.read(claim), lambda: claims.write(PICTURE, media_type="image/png")):
            with pytest.raises(TemporaryError):
                await attempt()


async def test_a_bucket_that_is_not_there_is_temporary_for_writing(s3_settings: Settings) -> None:
    async with open_claims(StoreSettings(**(s3_settings | {"store_url": "s3://nowhere"}))) as claims:
        with pytest.raises(TemporaryError, match="NoSuchBucket"):
            await claims.write(PICTURE, media_type="image/png")


def test_the_bucket_alone_names_the_store_as_in_the_source_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_URL", raising=False)
    monkeypatch.setenv("AWS_STORAGE_BUCKET_NAME", "stylelicense-media")
    assert StoreSettings().store_url == "s3://stylelicense-media"
    monkeypatch.setenv("STORE_URL", "file:///var/atelier")
    assert StoreSettings().store_url == "file:///var/atelier"


def test_no_key_shows_in_the_settings() -> None:
    assert "s3cr3t" not in repr(StoreSettings(store_url="s3://x", aws_secret_access_key="s3cr3t"))


async def test_a_store_that_takes_everything_and_says_nothing_is_given_up_in_time(s3_settings: Settings) -> None:
    """As behind a half-open connection: also while a body waits to be asked for."""

    async with open_proxy(urlsplit(s3_settings["AWS_S3_ENDPOINT_URL"]).port or 0) as line:
        line.flowing.clear()
        settings = s3_settings | {"AWS_S3_ENDPOINT_URL": f"http://127.0.0.1:{line.port}", "store_timeout_seconds": 1.0}
        async with open_claims(StoreSettings(**settings)) as claims, asyncio.timeout(5):
            with pytest.raises(TemporaryError, match="no answer in time"):
                await claims.write(PICTURE, media_type="image/png")
