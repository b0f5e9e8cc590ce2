"""The upload actor: the keys of uploaded pictures and their public addresses."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from actors.settings import UploadSettings
from actors.upload import open_upload, upload
from bus.actor import Context, Resources
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings
from contracts.upload import Upload, UploadDone


async def upload_pictures(
    claims: ClaimStore, context: Context, *pictures: bytes, media_type: str = "image/png", name: str = "gen-7", **more: Any
) -> UploadDone:
    images = [await claims.write(picture, media_type=media_type, width=8, height=4, tenant=None) for picture in pictures]
    return await upload(Upload(images=images, name=name), context, claims=claims, destination=claims, settings=UploadSettings(**more))


async def test_single_image_is_stored_under_order_name(claims: ClaimStore, context: Context, tmp_path: Path) -> None:
    uploaded = await upload_pictures(claims, context, b"picture")
    assert (tmp_path / "generations" / "gen-7.png").read_bytes() == b"picture"
    assert uploaded.result_url == uploaded.result_urls[0] == (tmp_path / "generations" / "gen-7.png").as_uri()
    assert (uploaded.files[0].width, uploaded.files[0].height, uploaded.files[0].size) == (8, 4, 7)
    assert await claims.read(uploaded.files[0], tenant=None) == b"picture"


async def test_multiple_images_are_stored_in_order_folder(claims: ClaimStore, context: Context, tmp_path: Path) -> None:
    uploaded = await upload_pictures(claims, context, b"one", b"two")
    assert [url.removeprefix(tmp_path.as_uri()) for url in uploaded.result_urls] == ["/generations/gen-7/0.png", "/generations/gen-7/1.png"]


async def test_repeated_upload_is_one_object(claims: ClaimStore, context: Context, tmp_path: Path) -> None:
    assert await upload_pictures(claims, context, b"picture") == await upload_pictures(claims, context, b"picture")
    assert [path.name for path in (tmp_path / "generations").iterdir()] == ["gen-7.png"]


async def test_key_template_is_a_setting(claims: ClaimStore, context: Context, tmp_path: Path) -> None:
    await upload_pictures(claims, context, b"picture", media_type="image/jpeg", key="out/{name}/final.{extension}")
    assert (tmp_path / "out" / "gen-7" / "final.jpg").exists()


@pytest.mark.parametrize("key", ["same.png", "{nme}.png", "{name.__class__}.png", "{0}.png", "{"])
def test_key_template_without_order_id_is_rejected(key: str) -> None:
    with pytest.raises(ValidationError):
        UploadSettings(key=key)
    with pytest.raises(ValidationError):
        UploadSettings(key_of_several="{name}.png")


async def test_key_template_with_parent_segments_is_rejected(claims: ClaimStore, context: Context) -> None:
    with pytest.raises(PermanentError) as error:
        await upload_pictures(claims, context, b"picture", key="../{name}.png")
    assert error.value.code == "key-refused"


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "x" * 129, "a b", "a\n"])
def test_invalid_name_is_rejected(name: str) -> None:
    with pytest.raises(ValidationError):
        Upload.model_validate({"images": [{"uri": "file:///x", "sha256": "0" * 64, "media_type": "image/png", "size": 1}], "name": name})


async def test_non_image_is_not_uploaded(claims: ClaimStore, context: Context) -> None:
    with pytest.raises(PermanentError) as error:
        await upload_pictures(claims, context, b"<script>", media_type="text/html")
    assert error.value.code == "media-refused"


async def test_public_address_from_settings_is_used(tmp_path: Path, context: Context) -> None:
    async with open_claim_store(StoreSettings(store_url=tmp_path.as_uri(), store_public_url="https://cdn.example/media/")) as claims:
        assert (await upload_pictures(claims, context, b"picture")).result_url == "https://cdn.example/media/generations/gen-7.png"


async def test_alternative_destination_is_used(
    claims: ClaimStore, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "public place"
    monkeypatch.setenv("UPLOAD_URL", destination.as_uri())
    image = await claims.write(b"picture", media_type="image/png", tenant=None)
    async with open_upload(Resources(claims)) as handler:
        uploaded = await handler(Upload(images=[image], name="gen-7"), context)
    assert isinstance(uploaded, UploadDone)
    assert uploaded.result_url == (destination / "generations" / "gen-7.png").as_uri()
    assert (destination / "generations" / "gen-7.png").read_bytes() == b"picture"


@pytest.mark.parametrize("public_url", [None, "https://cdn.example"])
async def test_links_that_expire_are_named_at_the_start(
    claims: ClaimStore, monkeypatch: pytest.MonkeyPatch, public_url: str | None
) -> None:
    monkeypatch.setenv("UPLOAD_URL", "s3://pictures")
    monkeypatch.setenv("AWS_S3_REGION_NAME", "eu-west-1")
    if public_url:
        monkeypatch.setenv("UPLOAD_PUBLIC_URL", public_url)
    with capture_logs() as entries:
        async with open_upload(Resources(claims)):
            pass
    warnings = [entry for entry in entries if entry["event"] == "upload.links_expire"]
    assert [("s3://pictures" in entry["reason"], "UPLOAD_PUBLIC_URL" in entry["remedy"]) for entry in warnings] == (
        [] if public_url else [(True, True)]
    )
