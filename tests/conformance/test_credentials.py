"""Content Credentials after watermark and upload, read from the bucket by the reference reader."""

import hashlib
import io
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import c2pa
import httpx
import pytest
from PIL import Image, ImageChops

from actors.upload import open_upload
from actors.watermark import open_watermark
from bus.actor import Resources
from bus.storage.claim_store import open_claim_store
from bus.storage.settings import StoreSettings
from contracts.upload import Upload
from contracts.watermark import Signature, Watermark
from tests.support.actor_context import make_context
from tests.support.certificates import write_signing_chain

MODEL_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, s3_settings: dict[str, Any], tmp_path: Path) -> None:
    files = write_signing_chain(tmp_path)
    for name in ("AWS_S3_ENDPOINT_URL", "AWS_S3_REGION_NAME"):
        monkeypatch.setenv(name, s3_settings[name])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("STORE_URL", (tmp_path / "store").as_uri())
    monkeypatch.setenv("UPLOAD_URL", "s3://gallery")
    monkeypatch.setenv("CREDENTIALS_CHAIN", str(files["chain"]))
    monkeypatch.setenv("CREDENTIALS_KEY", str(files["key"]))


async def upload_watermarked_image(*, generated: bool = True, tenant: str | None = "shop") -> tuple[bytes, bytes, str]:
    """The watermarked image, the uploaded file, and the sha256 of its claim."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    async with AsyncExitStack() as stack:
        claims = await stack.enter_async_context(open_claim_store(StoreSettings()))
        outside = await stack.enter_async_context(httpx.AsyncClient())
        watermark = await stack.enter_async_context(open_watermark(Resources(claims)))
        upload = await stack.enter_async_context(open_upload(Resources(claims)))
        image = await claims.write(file.getvalue(), media_type="image/png", tenant=tenant, generated=generated)
        command = Watermark(images=[image], signature=Signature(text="화가"), artist="화가", metadata={"seed": 7, "model": "sd-1.5"})
        context = make_context(tenant=tenant)
        watermarked: Any = await watermark(command, context)
        done: Any = await upload(Upload(images=watermarked.images, name="gen-7"), context)
        response = await outside.get(done.result_url)
        return await claims.read(watermarked.images[0], tenant=tenant), response.content, done.files[0].sha256


@pytest.mark.usefixtures("environment")
async def test_stored_image_carries_valid_manifest() -> None:
    _, uploaded, sha256 = await upload_watermarked_image()
    with c2pa.Reader("image/png", io.BytesIO(uploaded)) as reader:
        assert reader.get_validation_state() == "Valid"
        store = json.loads(reader.json())
    manifest = store["manifests"][store["active_manifest"]]
    assert manifest["title"] == "gen-7.png"
    assert manifest["signature_info"]["issuer"] == "Atelier"
    actions = next(assertion["data"]["actions"] for assertion in manifest["assertions"] if assertion["label"].startswith("c2pa.actions"))
    assert [(action["action"], action["digitalSourceType"]) for action in actions] == [("c2pa.created", MODEL_MADE)]
    assert hashlib.sha256(uploaded).hexdigest() == sha256, "the claim describes the signed file"


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("tenant", ["shop", None])
async def test_picture_that_a_user_sent_is_not_signed_as_generated(tenant: str | None) -> None:
    """Nor does its PNG say so, although the order's metadata does."""
    watermarked, uploaded, _ = await upload_watermarked_image(generated=False, tenant=tenant)
    assert uploaded == watermarked
    assert b"c2pa" not in uploaded
    picture = Image.open(io.BytesIO(uploaded))
    assert picture.text.keys() == {"artist", "job"}  # type: ignore[attr-defined]


@pytest.mark.usefixtures("environment")
async def test_signing_preserves_pixels_and_text_chunks() -> None:
    watermarked, uploaded, _ = await upload_watermarked_image()
    before, after = (Image.open(io.BytesIO(data)) for data in (watermarked, uploaded))
    assert ImageChops.difference(before, after).getbbox() is None
    assert after.text == before.text  # type: ignore[attr-defined]
    assert after.text["artist"] == "화가"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("environment")
async def test_manifest_validation_fails_for_modified_image() -> None:
    _, uploaded, _ = await upload_watermarked_image()
    offset = uploaded.index(b"IDAT") + 40
    modified = uploaded[:offset] + bytes([uploaded[offset] ^ 1]) + uploaded[offset + 1 :]
    with c2pa.Reader("image/png", io.BytesIO(modified)) as reader:
        assert reader.get_validation_state() == "Invalid"


@pytest.mark.usefixtures("environment")
async def test_image_is_stored_unsigned_without_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_CHAIN")
    monkeypatch.delenv("CREDENTIALS_KEY")
    watermarked, uploaded, _ = await upload_watermarked_image()
    assert uploaded == watermarked
