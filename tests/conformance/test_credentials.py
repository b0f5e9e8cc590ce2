"""Content Credentials, read back by the reference reader from what lies in the bucket after watermark and upload."""

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
from tests.support.signing_certificates import write_signing_chain

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


async def stored() -> tuple[bytes, bytes, str]:
    """The watermarked picture, what was uploaded of it, and the sha256 that the claim states."""
    blank = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(blank, "PNG")
    async with AsyncExitStack() as stack:
        claims = await stack.enter_async_context(open_claim_store(StoreSettings()))
        outside = await stack.enter_async_context(httpx.AsyncClient())
        watermark = await stack.enter_async_context(open_watermark(Resources(claims)))
        upload = await stack.enter_async_context(open_upload(Resources(claims)))
        drawn = await claims.write(blank.getvalue(), media_type="image/png")
        order = Watermark(images=[drawn], signature=Signature(text="화가"), artist="화가", metadata={"seed": 7})
        marked: Any = await watermark(order, make_context())
        done: Any = await upload(Upload(images=marked.images, name="gen-7"), make_context())
        answer = await outside.get(done.result_url)
        return await claims.read(marked.images[0]), answer.content, done.files[0].sha256


@pytest.mark.usefixtures("environment")
async def test_stored_image_carries_valid_manifest() -> None:
    _, kept, sha256 = await stored()
    with c2pa.Reader("image/png", io.BytesIO(kept)) as reader:
        assert reader.get_validation_state() == "Valid"
        told = json.loads(reader.json())
    manifest = told["manifests"][told["active_manifest"]]
    assert manifest["title"] == "gen-7.png"
    assert manifest["signature_info"]["issuer"] == "Atelier"
    actions = next(assertion["data"]["actions"] for assertion in manifest["assertions"] if assertion["label"].startswith("c2pa.actions"))
    assert [(action["action"], action["digitalSourceType"]) for action in actions] == [("c2pa.created", MODEL_MADE)]
    assert hashlib.sha256(kept).hexdigest() == sha256, "the claim speaks of the signed file"


@pytest.mark.usefixtures("environment")
async def test_signing_preserves_pixels_and_text_chunks() -> None:
    marked, kept, _ = await stored()
    before, after = (Image.open(io.BytesIO(data)) for data in (marked, kept))
    assert ImageChops.difference(before, after).getbbox() is None
    assert after.text == before.text  # type: ignore[attr-defined]
    assert after.text["artist"] == "화가"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("environment")
async def test_manifest_validation_fails_for_modified_image() -> None:
    _, kept, _ = await stored()
    at = kept.index(b"IDAT") + 40
    forged = kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :]
    with c2pa.Reader("image/png", io.BytesIO(forged)) as reader:
        assert reader.get_validation_state() == "Invalid"


@pytest.mark.usefixtures("environment")
async def test_image_is_stored_unsigned_without_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_CHAIN")
    monkeypatch.delenv("CREDENTIALS_KEY")
    marked, kept, _ = await stored()
    assert kept == marked
