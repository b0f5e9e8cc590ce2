"""A user's picture as a model gets it: RGB, no side longer than the limit, a tiny one in the middle of white, nothing else of the file."""

import io

from anyio import to_thread
from PIL import Image

from actors.attachments.settings import AttachmentSettings
from actors.pictures.reading import on_white, read_picture
from bus.errors import PermanentError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SMALLEST = 32
"""Pixels. Vision models divide a picture into patches; what is smaller than one is no picture to them."""


async def fitted(data: bytes, settings: AttachmentSettings) -> bytes:
    """A PNG. Raises PermanentError("image-unreadable" · "image-too-large")."""
    if len(data) > settings.max_upload_bytes:
        message = f"The picture has {len(data)} bytes; at most {settings.max_upload_bytes} are read (MAX_UPLOAD_BYTES)."
        raise PermanentError("image-too-large", message)
    return await to_thread.run_sync(encoded, data, settings.max_pixels, settings.max_image_side)


def encoded(data: bytes, max_pixels: int, longest: int) -> bytes:
    picture = on_white(read_picture(data, max_pixels, formats=FORMATS).pixels).convert("RGB")
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        roomy(picture).save(file, "PNG", compress_level=1)
        return file.getvalue()


def roomy(picture: Image.Image) -> Image.Image:
    if min(picture.size) >= SMALLEST:
        return picture
    side = max(SMALLEST, *picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
