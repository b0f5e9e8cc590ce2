"""A user's picture, as a model gets it."""

import io
from typing import Any

import pytest
from PIL import Image

from actors.attachments.pictures import fitted
from actors.attachments.settings import AttachmentSettings
from bus.errors import PermanentError


def file(form: str = "PNG", size: tuple[int, int] = (64, 48), mode: str = "RGB", colour: Any = "red") -> bytes:
    with io.BytesIO() as out:
        Image.new(mode, size, colour).save(out, form)
        return out.getvalue()


async def seen(data: bytes, **limits: Any) -> Image.Image:
    return Image.open(io.BytesIO(await fitted(data, AttachmentSettings.model_validate(limits))))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_five_forms_are_read(form: str) -> None:
    picture = await seen(file(form))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 48))


async def test_a_long_picture_is_scaled_down_as_it_is() -> None:
    """Its sides keep their proportion; a small one stays."""
    assert (await seen(file(size=(2560, 1280)))).size == (1280, 640)
    assert (await seen(file(size=(2560, 1280)), MAX_IMAGE_SIDE=100)).size == (100, 50)
    assert (await seen(file(size=(100, 100)))).size == (100, 100)


async def test_a_tiny_picture_stands_in_white() -> None:
    picture = await seen(file(size=(2, 2)))
    assert (picture.size, picture.getpixel((0, 0)), picture.getpixel((16, 16))) == ((32, 32), (255, 255, 255), (255, 0, 0))


async def test_what_is_transparent_shows_white() -> None:
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
async def test_what_is_none_is_refused(data: bytes, limits: dict[str, int], code: str) -> None:
    with pytest.raises(PermanentError) as refused:
        await seen(data, **limits)
    assert refused.value.code == code
