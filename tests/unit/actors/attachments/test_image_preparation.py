"""User pictures prepared for a model: accepted formats, scaling, padding, limits."""

import io
from typing import Any

import pytest
from PIL import Image

from actors.attachments.image_preparation import prepare_image
from actors.settings import AttachmentSettings
from bus.errors import PermanentError


def encode_image(image_format: str = "PNG", size: tuple[int, int] = (64, 48), mode: str = "RGB", color: Any = "red") -> bytes:
    with io.BytesIO() as out:
        Image.new(mode, size, color).save(out, image_format)
        return out.getvalue()


async def prepare(data: bytes, **limits: Any) -> Image.Image:
    return Image.open(io.BytesIO(await prepare_image(data, AttachmentSettings.model_validate(limits))))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_five_image_formats_are_decoded(image_format: str) -> None:
    picture = await prepare(encode_image(image_format))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 48))


async def test_long_image_is_scaled_with_aspect_ratio() -> None:
    """A small image is not scaled."""
    assert (await prepare(encode_image(size=(2560, 1280)))).size == (1280, 640)
    assert (await prepare(encode_image(size=(2560, 1280)), MAX_IMAGE_SIDE=100)).size == (100, 50)
    assert (await prepare(encode_image(size=(100, 100)))).size == (100, 100)


async def test_tiny_image_is_padded_with_white() -> None:
    picture = await prepare(encode_image(size=(2, 2)))
    assert (picture.size, picture.getpixel((0, 0)), picture.getpixel((16, 16))) == ((32, 32), (255, 255, 255), (255, 0, 0))


async def test_transparency_is_flattened_on_white() -> None:
    assert (await prepare(encode_image(mode="RGBA", color=(0, 0, 0, 0)))).getpixel((9, 9)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "limits", "code"),
    [
        (b"no picture", {}, "image-unreadable"),
        (encode_image()[:60], {}, "image-unreadable"),
        (encode_image("TIFF"), {}, "image-unreadable"),
        (encode_image(size=(100, 100)), {"MAX_IMAGE_PIXELS": 9999}, "image-too-large"),
        (encode_image(), {"MAX_UPLOAD_BYTES": 10}, "image-too-large"),
    ],
)
async def test_non_image_is_rejected(data: bytes, limits: dict[str, int], code: str) -> None:
    with pytest.raises(PermanentError) as raised:
        await prepare(data, **limits)
    assert raised.value.code == code
