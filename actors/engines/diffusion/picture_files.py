"""Generated pictures as files: PNG, JPEG and WebP, each with the metadata of how it was made.

PNG has one text chunk for each key. JPEG and WebP have one JSON object in the EXIF field UserComment, in ASCII, with other characters
escaped, so that every reader decodes it the same way.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from contracts.claim import ImageFormat

DEFAULT_QUALITY = 90
MAX_METADATA_BYTES = 60_000
"""Of all keys and values as JSON: a segment of JPEG holds 65,533 bytes of EXIF data."""
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
ASCII_COMMENT = b"ASCII\0\0\0"
"""The character code that begins a UserComment, as the EXIF specification defines it."""

MEDIA_TYPES: Mapping[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
EXTENSIONS: Mapping[ImageFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""Of a file's name, without the dot."""


def write_picture(
    file: Path, pixels: Any, metadata: Mapping[str, str], output_format: ImageFormat = "png", quality: int | None = None
) -> None:
    """`save_picture` for `pixels`, height × width × 3 bytes."""
    from PIL import Image

    save_picture(file, Image.fromarray(pixels), metadata, output_format, quality)


def save_picture(
    file: Path | BinaryIO, picture: Any, metadata: Mapping[str, str], output_format: ImageFormat = "png", quality: int | None = None
) -> None:
    """Write a Pillow image in RGB with `metadata`. `quality`: 1…100 of JPEG and WebP; None: 90.

    Raises ValueError for metadata beyond MAX_METADATA_BYTES, and for a picture that is too large for its format.
    """
    comment = json.dumps(dict(metadata)).encode("ascii")
    if len(comment) > MAX_METADATA_BYTES:
        raise ValueError(f"the metadata of a picture has {len(comment):,} bytes as JSON; a file holds {MAX_METADATA_BYTES:,}")
    match output_format:
        case "png":
            picture.save(file, format="PNG", pnginfo=build_text_chunks(metadata), compress_level=4)
        case "jpeg":  # full colour resolution: halved, thin coloured lines and text are blurred
            picture.save(file, format="JPEG", quality=quality or DEFAULT_QUALITY, subsampling=0, exif=build_exif(comment))
        case "webp":
            picture.save(file, format="WEBP", quality=quality or DEFAULT_QUALITY, exif=build_exif(comment))


def build_text_chunks(metadata: Mapping[str, str]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in metadata.items():
        info.add_itxt(key, text)
    return info


def build_exif(comment: bytes) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII_COMMENT + comment
    return exif
