"""Pictures loaded from base64, claims and addresses, and the errors of those that are rejected."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from actors.vision.image_loader import ImageLoader, encode_model_png
from actors.vision.settings import VisionSettings
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore, open_claim_store
from bus.storage.settings import StoreSettings


def png(width: int = 40, height: int = 30, color: str = "teal") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def image_loader(claims: ClaimStore, tmp_path: Path) -> ImageLoader:
    (tmp_path / "assets").mkdir()
    return ImageLoader(claims, VisionSettings(assets_dir=tmp_path / "assets"))


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:image/jpeg;base64,"])
async def test_base64_is_decoded_with_or_without_prefix(image_loader: ImageLoader, prefix: str) -> None:
    picture = await image_loader.from_base64(prefix + base64.b64encode(png()).decode())
    assert picture.size == (40, 30)


async def test_claim_is_loaded(image_loader: ImageLoader, claims: ClaimStore) -> None:
    claim = await claims.write(png(), media_type="image/png", tenant=None)
    assert (await image_loader.from_claim(claim, tenant=None)).getpixel((0, 0)) == (0, 128, 128)


async def test_asset_is_loaded_from_assets_folder(tmp_path: Path) -> None:
    folder = tmp_path / "assets" / "yh" / "tenants"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png())
    store = StoreSettings(store_url=(tmp_path / "store").as_uri())
    async with open_claim_store(store) as claims:
        image_loader = ImageLoader(claims, VisionSettings(assets_dir=tmp_path / "assets"))
        assert (await image_loader.from_url("/assets/yh/tenants/a.png", tenant=None)).size == (40, 30)
        with pytest.raises(PermanentError) as raised:
            await image_loader.from_url("/assets/yh/tenants/b.png", tenant=None)
    assert raised.value.code == "asset-missing"


@pytest.mark.parametrize(
    "address",
    [
        "/assets/../secret.png",
        "/assets/%2e%2e/secret.png",
        "/etc/passwd",
        "/assets//etc/passwd",
        "/assets/link/secret.png",
        "//evil/x",
        "file:///etc/passwd",
    ],
)
async def test_asset_path_traversal_is_rejected(image_loader: ImageLoader, tmp_path: Path, address: str) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "assets" / "link").symlink_to(tmp_path)

    with pytest.raises(PermanentError) as raised:
        await image_loader.from_url(address, tenant=None)

    assert raised.value.code == "asset-refused"


@pytest.mark.parametrize("address", ["https://127.0.0.1/a.png", "https://169.254.169.254/latest", "http://[::1]/a.png", "ftp://x/a.png"])
async def test_private_address_is_refused(image_loader: ImageLoader, address: str) -> None:
    with pytest.raises(PermanentError) as raised:
        await image_loader.from_url(address, tenant=None)

    assert raised.value.code == "asset-refused"


@pytest.mark.parametrize("text", ["no base64!", base64.b64encode(b"no picture").decode(), base64.b64encode(png()[:40]).decode()])
async def test_non_image_is_rejected(image_loader: ImageLoader, text: str) -> None:
    with pytest.raises(PermanentError) as raised:
        await image_loader.from_base64(text)

    assert raised.value.code == "image-unreadable"


async def test_decompression_bomb_is_rejected_before_decoding(claims: ClaimStore) -> None:
    image_loader = ImageLoader(claims, VisionSettings(max_image_pixels=10_000, max_image_bytes=5_000))
    for data in (png(200, 200), png(20, 20) + bytes(6_000)):
        with pytest.raises(PermanentError) as raised:
            await image_loader.from_base64(base64.b64encode(data).decode())
        assert raised.value.code == "image-too-large"


def test_image_is_scaled_to_limit_with_aspect_ratio() -> None:
    wide = Image.open(io.BytesIO(encode_model_png(Image.new("RGB", (4000, 1000), "red"), 1280)))
    thin = Image.open(io.BytesIO(encode_model_png(Image.new("RGB", (4000, 1), "red"), 1280)))

    assert (wide.size, thin.size) == ((1280, 320), (1280, 8))
