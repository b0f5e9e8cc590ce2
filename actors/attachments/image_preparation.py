"""Prepares a user's picture for a model: a PNG in RGB, scaled down to the limit or padded to the minimum, without the file's metadata."""

import io

from anyio import to_thread
from PIL import Image

from actors.imaging.image_decoding import decode_image, flatten_on_white
from actors.settings import AttachmentSettings
from bus.errors import PermanentError

MIN_SIDE = 32
"""Pixels. A vision model divides a picture into patches and cannot read one that is smaller than a patch."""


async def prepare_image(data: bytes, settings: AttachmentSettings) -> bytes:
    """A PNG. Raises PermanentError("image-unreadable" · "image-too-large")."""
    if len(data) > settings.max_upload_bytes:
        message = f"The picture has {len(data)} bytes; at most {settings.max_upload_bytes} are read (MAX_UPLOAD_BYTES)."
        raise PermanentError("image-too-large", message)
    return await to_thread.run_sync(encode_prepared_png, data, settings.max_pixels, settings.max_image_side)


def encode_prepared_png(data: bytes, max_pixels: int, max_side: int) -> bytes:
    picture = flatten_on_white(decode_image(data, max_pixels).pixels).convert("RGB")
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        pad_to_min_side(picture).save(file, "PNG", compress_level=1)
        return file.getvalue()


def pad_to_min_side(picture: Image.Image) -> Image.Image:
    if min(picture.size) >= MIN_SIDE:
        return picture
    side = max(MIN_SIDE, *picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
