"""Decodes untrusted image files: only the allowed formats, a pixel limit that is checked before decoding, no truncated files."""

import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from bus.errors import PermanentError

DECODED_FORMATS = ("PNG", "JPEG", "WEBP")
IMAGE_UNREADABLE, IMAGE_TOO_LARGE = "image-unreadable", "image-too-large"


@dataclass(frozen=True)
class DecodedImage:
    """Decoded pixels in their original mode, and the text chunks of a PNG."""

    pixels: Image.Image
    text_chunks: dict[str, str]


def decode_image(data: bytes, max_pixels: int, label: str = "The picture", formats: tuple[str, ...] = DECODED_FORMATS) -> DecodedImage:
    """The first frame of a PNG, JPEG or WebP (or of `formats`), fully decoded and rotated as its EXIF orientation says.

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
    except Exception as error:  # The decoders may raise anything for a malicious file.
        raise PermanentError(IMAGE_UNREADABLE, f"{label} is not a complete {', '.join(formats)} ({len(data)} bytes): {error}") from error


def check_pixels(width: int, height: int, max_pixels: int, label: str) -> None:
    if width * height > max_pixels:
        raise PermanentError(
            IMAGE_TOO_LARGE, f"{label} is {width}×{height}; at most {max_pixels} pixels are decoded (the setting …_PIXELS of this step)."
        )


def to_rgba(picture: Image.Image) -> Image.Image:
    """RGBA from any mode. Sixteen bits per pixel are scaled to eight; Pillow alone would clip them to white."""
    if picture.mode.startswith(("I", "F")):
        picture = picture.convert("I").point(lambda level: level / 256).convert("L")
    return picture.convert("RGBA")


def flatten_on_white(picture: Image.Image) -> Image.Image:
    """Opaque RGBA: transparent pixels become white, not the hidden colour of the pixel."""
    layer = to_rgba(picture)
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
