"""Bytes to pixels, safely: only three formats, a cap on pixels that is looked at before any is decoded, and no half pictures."""

import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from bus.errors import PermanentError

DECODED_FORMATS = ("PNG", "JPEG", "WEBP")
IMAGE_UNREADABLE, IMAGE_TOO_LARGE = "image-unreadable", "image-too-large"


@dataclass(frozen=True)
class DecodedImage:
    """Decoded pixels, in the mode they came in, and the text chunks that a PNG brought along."""

    pixels: Image.Image
    text_chunks: dict[str, str]


def decode_image(data: bytes, max_pixels: int, label: str = "The picture", formats: tuple[str, ...] = DECODED_FORMATS) -> DecodedImage:
    """The first frame of a PNG, JPEG or WebP (or of what `formats` says), decoded to its end, the right way up.

    Raises PermanentError("image-unreadable" · "image-too-large").
    """
    try:
        opened = Image.open(io.BytesIO(data), formats=formats)
        check_pixels(opened.width, opened.height, max_pixels, label)
        opened.load()
        return DecodedImage(ImageOps.exif_transpose(opened), dict(getattr(opened, "text", {})))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PermanentError(IMAGE_TOO_LARGE, f"{label} has too many pixels to be decoded: {error}") from error
    except (PermanentError, MemoryError):
        raise
    except Exception as error:  # The decoders raise whatever a hostile file makes them raise.
        raise PermanentError(IMAGE_UNREADABLE, f"{label} is no whole {', '.join(formats)} ({len(data)} bytes): {error}") from error


def check_pixels(width: int, height: int, max_pixels: int, label: str) -> None:
    if width * height > max_pixels:
        raise PermanentError(
            IMAGE_TOO_LARGE, f"{label} is {width}×{height}; at most {max_pixels} pixels are decoded (WATERMARK_MAX_PIXELS)."
        )


def to_rgba(picture: Image.Image) -> Image.Image:
    """RGBA, whatever the mode was. Sixteen bits a pixel become eight by scaling, where Pillow alone would clip them to white."""
    if picture.mode.startswith(("I", "F")):
        picture = picture.convert("I").point(lambda level: level / 256).convert("L")
    return picture.convert("RGBA")


def flatten_on_white(picture: Image.Image) -> Image.Image:
    """RGBA without holes: what is transparent shows white, not whatever colour lies hidden there."""
    layer = to_rgba(picture)
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
