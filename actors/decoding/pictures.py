"""Decodes a picture, inside a decoder process: only the allowed formats, within a pixel limit that is checked before decoding."""

import io
import signal
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageOps

from actors.decoding.protocol import Refused

UNREADABLE, TOO_LARGE, TOO_COSTLY = "image-unreadable", "image-too-large", "image-too-costly"
FIRST_CPU_SECONDS, PIXELS_PER_CPU_SECOND = 2.0, 5_000_000
"""The time of a decoder: for the file itself, and for its pixels. The slowest honest files need a tenth of it."""
MAX_SCANS = 100
"""Scans of a JPEG. Encoders write about ten; each scan costs a pass over all pixels."""
MAX_TEXT_CHARS = 1 << 20
"""Characters of all text chunks of a PNG. As JSON each may take twelve bytes, and a frame holds 16 MiB of it."""


def picture_cpu_seconds(pixels: int) -> float:
    return FIRST_CPU_SECONDS + pixels / PIXELS_PER_CPU_SECOND


def read_picture(data: bytes, max_pixels: int, formats: Sequence[str], label: str) -> tuple[dict[str, Any], bytes]:
    """The first frame as its EXIF orientation says: mode (RGB or RGBA), width and height, and text chunks; and the pixels.

    A text chunk is its text, its language and its keyword in that language. Raises Refused.
    """
    Image.MAX_IMAGE_PIXELS = None  # The limit is `max_pixels`; this is a process of its own.
    try:
        opened = Image.open(io.BytesIO(data), formats=tuple(formats))
        _check_cost(opened, data, max_pixels, label)
        opened.load()
        picture = to_rgb_or_rgba(ImageOps.exif_transpose(opened))
    except (Refused, MemoryError, RecursionError):
        raise
    except Exception as error:  # The decoders may raise anything for a malicious file.
        message = f"{label} is not a complete {', '.join(formats)} ({len(data)} bytes): {error}"
        raise Refused(UNREADABLE, message) from error
    chunks = {key: [str(value), *language_of(value)] for key, value in getattr(opened, "text", {}).items()}
    if sum(len("".join(parts)) for parts in chunks.values()) > MAX_TEXT_CHARS:
        raise Refused(TOO_COSTLY, f"{label} has more than {MAX_TEXT_CHARS} characters of text chunks. Save it without its metadata.")
    return {"mode": picture.mode, "size": picture.size, "text": chunks}, picture.tobytes()


def language_of(text: str) -> tuple[str, str]:
    """The language of a text chunk and its keyword in that language; both are empty but for iTXt."""
    return str(getattr(text, "lang", None) or ""), str(getattr(text, "tkey", None) or "")


def _check_cost(opened: Image.Image, data: bytes, max_pixels: int, label: str) -> None:
    """Raises Refused. The rest of the work gets the time that belongs to the number of pixels."""
    pixels = opened.width * opened.height
    if pixels > max_pixels:
        size = f"{opened.width}×{opened.height}"
        raise Refused(TOO_LARGE, f"{label} is {size}; at most {max_pixels} pixels are decoded (the setting …_PIXELS of this step).")
    if opened.format == "JPEG" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise Refused(TOO_COSTLY, f"{label} is a JPEG of {scans} scans; at most {MAX_SCANS} are decoded. Save it again as a usual JPEG.")
    signal.setitimer(signal.ITIMER_PROF, picture_cpu_seconds(pixels))


def to_rgb_or_rgba(picture: Image.Image) -> Image.Image:
    """RGB, or RGBA if it has transparent pixels, from any mode. Sixteen bits are scaled to eight; Pillow alone would clip them."""
    if picture.mode.startswith(("I", "F")):
        picture = picture.convert("I").point(lambda level: level / 256).convert("L")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
