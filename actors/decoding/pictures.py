"""Decodes a picture, inside a decoder process: only the allowed formats, within a pixel limit that is checked before decoding.

The pixels count. What is not needed for them is read apart from them, within limits, and forgiven when it is damaged.
"""

import io
import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageChops, ImageCms, UnidentifiedImageError

from actors.decoding.jpeg_file import read_jpeg, with_other_endings
from actors.decoding.picture_file import TOO_LARGE, UNREADABLE, PictureFile, describe_kind, detect_format
from actors.decoding.png_file import read_png
from actors.decoding.protocol import Refused
from actors.decoding.webp_file import read_webp

FIRST_CPU_SECONDS, PIXELS_PER_CPU_SECOND = 2.0, 5_000_000
"""The time of a decoder: for the file itself, and for its pixels. The slowest honest files need a tenth of it."""
ACCEPTED_FORMATS = "PNG, JPEG, WebP, GIF and BMP"
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each orientation of EXIF asks for."""
PROFILED_MODES = ("RGB", "RGBA", "P", "PA", "CMYK")
SAMPLES = bytes(itertools.chain.from_iterable(itertools.product(range(0, 256, 51), repeat=3)))
MAX_ROUNDING = 2
"""Levels by which conversion from one writer's sRGB to another's changes a colour."""


def picture_cpu_seconds(pixels: int) -> float:
    return FIRST_CPU_SECONDS + pixels / PIXELS_PER_CPU_SECOND


def read_picture(data: bytes, max_pixels: int, label: str) -> tuple[dict[str, Any], bytes]:
    """The first frame as its EXIF orientation says, in sRGB: mode (RGB or RGBA), width and height, and text chunks; and the pixels.

    A text chunk is its text, its language and its keyword in that language. Raises Refused.
    """
    with open_picture(data, label) as (file, opened):
        check_cost(opened.size, 1, max_pixels, label)
        picture = load_frame(opened, file, label)
    return {"mode": picture.mode, "size": picture.size, "text": {key: list(chunk) for key, chunk in file.text.items()}}, picture.tobytes()


@contextmanager
def open_picture(data: bytes, label: str, *, animated: bool = False) -> Iterator[tuple[PictureFile, Image.Image]]:
    """The file and its picture, of which nothing is decoded. Raises Refused, also for what the block raises while it decodes.

    `animated`: with the frames of a PNG, which show something else than its first picture; those of GIF and WebP always remain.
    """
    Image.MAX_IMAGE_PIXELS = None  # The limit is `max_pixels`; this is a process of its own.
    file_format = detect_format(data)
    if file_format is None:
        raise Refused(UNREADABLE, f"{label} is {describe_kind(data)} ({len(data)} bytes). {ACCEPTED_FORMATS} are read: save it as one.")
    try:
        file = read_file(data, file_format, label, animated=animated)
        yield file, Image.open(io.BytesIO(file.data), formats=(file_format,))
    except (Refused, MemoryError, RecursionError):
        raise
    except UnidentifiedImageError as error:
        raise Refused(UNREADABLE, f"{label} is not a complete {file_format} ({len(data)} bytes): its header is damaged.") from error
    except Exception as error:  # The decoders may raise anything for a malicious file.
        reason = str(error) or "its parts contradict each other"
        message = f"{label} is not a complete {file_format} ({len(data)} bytes): {reason}. It is damaged or cut short: send it again."
        raise Refused(UNREADABLE, message) from error


def load_frame(opened: Image.Image, file: PictureFile, label: str) -> Image.Image:
    """The frame at which the picture stands: RGB or RGBA in sRGB, as its EXIF orientation says. Raises Refused."""
    opened.load()
    if not file.ended:
        _check_rows(opened, file.data, label)
    return transpose(to_srgb(opened, file.profile), file.orientation)


def read_file(data: bytes, file_format: str, label: str, *, animated: bool = False) -> PictureFile:
    """Raises Refused."""
    match file_format:
        case "PNG":
            return read_png(data, label, animated=animated)
        case "JPEG":
            return read_jpeg(data, label)
        case "WEBP":
            return read_webp(data)
    return PictureFile(data)


def check_cost(size: tuple[int, int], frames: int, max_pixels: int, label: str) -> None:
    """Raises Refused. The rest of the work gets the time that belongs to the number of pixels."""
    pixels = size[0] * size[1] * frames
    if pixels > max_pixels:
        each = f"{size[0]}×{size[1]}" + (f" with {frames} frames" if frames > 1 else "")
        raise Refused(TOO_LARGE, f"{label} is {each}; at most {max_pixels} pixels are decoded (the setting …_PIXELS of this step).")
    signal.setitimer(signal.ITIMER_PROF, picture_cpu_seconds(pixels))


def _check_rows(opened: Image.Image, data: bytes, label: str) -> None:
    """Raises Refused for a JPEG without its end, of which pixels are missing."""
    pixels = opened.tobytes()
    if any(Image.open(io.BytesIO(other), formats=("JPEG",)).tobytes() != pixels for other in with_other_endings(data)):
        raise Refused(UNREADABLE, f"{label} is a JPEG that is cut short: its last rows are missing. Send it again.")


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB or RGBA, with its colours converted from its profile; they are kept when it has none, or one that cannot be used.

    A profile of a grey picture is not used.
    """
    profile = profile if picture.mode in PROFILED_MODES else None
    if picture.mode != "CMYK":  # the colour of a PNG that stands for transparency is one before the conversion
        picture = to_rgb_or_rgba(picture)
    return to_rgb_or_rgba(picture if profile is None else convert_colors(picture, profile))


def convert_colors(picture: Image.Image, profile: bytes) -> Image.Image:
    """From RGB, RGBA or CMYK to sRGB; unchanged when the profile cannot be used, or is sRGB by its numbers, whatever its name."""
    mode = "RGB" if picture.mode == "CMYK" else picture.mode
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), picture.mode, mode)
        if mode == picture.mode:
            samples = Image.frombytes("RGB", (len(SAMPLES) // 3, 1), SAMPLES).convert(mode)
            changes = ImageChops.difference(samples, ImageCms.applyTransform(samples, transform) or samples).convert("RGB")
            if max(changes.tobytes()) <= MAX_ROUNDING:
                return picture
        return ImageCms.applyTransform(picture, transform) or picture
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError, SyntaxError):
        return picture


def transpose(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else picture


def to_rgb_or_rgba(picture: Image.Image) -> Image.Image:
    """RGB, or RGBA if it has transparent pixels, from any mode. Sixteen bits are scaled to eight; Pillow alone would clip them."""
    if picture.mode.startswith(("I", "F")):
        picture = picture.convert("I").point(lambda level: level / 256).convert("L")
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)
