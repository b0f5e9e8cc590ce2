"""A user's picture, as a model gets it."""

import io
from typing import Any

import pytest
from PIL import Image

from actors.attachments.image_preparation import prepare_image
from actors.settings import AttachmentSettings
from bus.errors import PermanentError


def file(form: str = "PNG", size: tuple[int, int] = (64, 48), mode: str = "RGB", colour: Any = "red") -> bytes:
    with io.BytesIO() as out:
        Image.new(mode, size, colour).save(out, form)
        return out.getvalue()


async def seen(data: bytes, **limits: Any) -> Image.Image:
    return Image.open(io.BytesIO(await prepare_image(data, AttachmentSettings.model_validate(limits))))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_five_image_formats_are_decoded(form: str) -> None:
    picture = await seen(file(form))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 48))


async def test_long_image_is_scaled_with_aspect_ratio() -> None:
    """Its sides keep their proportion; a small one stays."""
    assert (await seen(file(size=(2560, 1280)))).size == (1280, 640)
    assert (await seen(file(size=(2560, 1280)), MAX_IMAGE_SIDE=100)).size == (100, 50)
    assert (await seen(file(size=(100, 100)))).size == (100, 100)


async def test_tiny_image_is_padded_with_white() -> None:
    picture = await seen(file(size=(2, 2)))
    assert (picture.size, picture.getpixel((0, 0)), picture.getpixel((16, 16))) == ((32, 32), (255, 255, 255), (255, 0, 0))


async def test_transparency_is_flattened_on_white() -> None:
    assert (await seen(file(mode="RGBA", colour=(0, 0, 0, 0)))).getpixel((9, 9)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "limits", "code"),
    [
        (b"no picture", {}, "image-unreadable"),
        (file()[:60], {}, "image-unreadable"),
        (file("TIFF"), {}, "image-unreadable"),
        (file(size=(100, 100)), {"MAX_IMAGE_PIXELS": 9999}, "image-too-large"),
        (file(), {"MAX_UPLOAD_BYTES": 10}, "image-too-large"),
    ],
)
async def test_non_image_is_rejected(data: bytes, limits: dict[str, int], code: str) -> None:
    with pytest.raises(PermanentError) as refused:
        await seen(data, **limits)
    assert refused.value.code == code
