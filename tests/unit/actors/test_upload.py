"""The upload actor: under which key a picture lies, and at which address it is read."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.settings import UploadSettings
from actors.upload import open_upload, upload
from bus.actor import Context, Tools
from bus.claims import ClaimStore
from bus.errors import PermanentError
from bus.store_settings import StoreSettings
from bus.stores import open_claims
from contracts.upload import Upload, UploadDone


async def done(
    claims: ClaimStore, context: Context, *pictures: bytes, media_type: str = "image/png", name: str = "gen-7", **more: Any
) -> UploadDone:
    images = [await claims.write(picture, media_type=media_type, width=8, height=4) for picture in pictures]
    return await upload(Upload(images=images, name=name), context, claims=claims, goal=claims, settings=UploadSettings(**more))


async def test_one_picture_lies_under_the_orders_name(claims: ClaimStore, context: Context, tmp_path: Path) -> None:
    uploaded = await done(claims, context, b"picture")
    assert (tmp_path / "generations" / "gen-7.png").read_bytes() == b"picture"
    assert uploaded.result_url == uploaded.result_urls[0] == (tmp_path / "generations" / "gen-7.png").as_uri()
    assert (uploaded.files[0].width, uploaded.files[0].height, uploaded.files[0].size) == (8, 4, 7)
    assert await claims.read(uploaded.files[0]) == b"picture"


async def test_several_lie_in_a_folder_of_their_own_so_that_no_other_order_can_share_a_key(
    claims: ClaimStore, context: Context, tmp_path: Path
) -> None:
    uploaded = await done(claims, context, b"one", b"two")
    assert [url.removeprefix(tmp_path.as_uri()) for url in uploaded.result_urls] == ["/generations/gen-7/0.png", "/generations/gen-7/1.png"]


async def test_an_upload_done_twice_is_one_object(claims: ClaimStore, context: Context, tmp_path: Path) -> None:
    assert await done(claims, context, b"picture") == await done(claims, context, b"picture")
    assert [path.name for path in (tmp_path / "generations").iterdir()] == ["gen-7.png"]


async def test_the_key_is_a_setting(claims: ClaimStore, context: Context, tmp_path: Path) -> None:
    await done(claims, context, b"picture", media_type="image/jpeg", key="out/{name}/final.{extension}")
    assert (tmp_path / "out" / "gen-7" / "final.jpg").exists()


@pytest.mark.parametrize("key", ["same.png", "{nme}.png", "{name.__class__}.png", "{0}.png", "{"])
def test_a_key_that_two_orders_would_share_is_no_setting(key: str) -> None:
    with pytest.raises(ValidationError):
        UploadSettings(key=key)
    with pytest.raises(ValidationError):
        UploadSettings(key_of_several="{name}.png")


async def test_a_key_from_the_settings_cannot_climb_either(claims: ClaimStore, context: Context) -> None:
    with pytest.raises(PermanentError) as error:
        await done(claims, context, b"picture", key="../{name}.png")
    assert error.value.code == "key-refused"


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "x" * 129, "a b", "a\n"])
def test_a_name_that_is_no_plain_name_is_no_command(name: str) -> None:
    with pytest.raises(ValidationError):
        Upload.model_validate({"images": [{"uri": "file:///x", "sha256": "0" * 64, "media_type": "image/png", "size": 1}], "name": name})


async def test_what_is_no_picture_is_not_put_in_public(claims: ClaimStore, context: Context) -> None:
    with pytest.raises(PermanentError) as error:
        await done(claims, context, b"<script>", media_type="text/html")
    assert error.value.code == "media-refused"


async def test_a_public_address_is_used_where_the_settings_know_one(tmp_path: Path, context: Context) -> None:
    async with open_claims(StoreSettings(store_url=tmp_path.as_uri(), store_public_url="https://cdn.example/media/")) as claims:
        assert (await done(claims, context, b"picture")).result_url == "https://cdn.example/media/generations/gen-7.png"


async def test_another_place_may_be_named(claims: ClaimStore, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = tmp_path / "public place"
    monkeypatch.setenv("UPLOAD_URL", goal.as_uri())
    image = await claims.write(b"picture", media_type="image/png")
    async with open_upload(Tools(claims)) as handle:
        uploaded = await handle(Upload(images=[image], name="gen-7"), context)
    assert isinstance(uploaded, UploadDone)
    assert uploaded.result_url == (goal / "generations" / "gen-7.png").as_uri()
    assert (goal / "generations" / "gen-7.png").read_bytes() == b"picture"
