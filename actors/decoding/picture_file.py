"""A picture file without what its pixels do not need, and the metadata that could be read; and what a file is that is no such picture."""

from dataclasses import dataclass, field

from actors.decoding.metadata import NORMAL

UNREADABLE, TOO_LARGE, TOO_COSTLY = "image-unreadable", "image-too-large", "image-too-costly"
Chunk = tuple[str, str, str]
"""The text of a text chunk, its language, and its keyword in that language."""
FILE_KINDS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"II*\0", "a TIFF (or a camera's raw picture)"),
    (0, b"MM\0*", "a TIFF (or a camera's raw picture)"),
    (0, b"II+\0", "a BigTIFF"),
    (0, b"\0\0\1\0", "an ICO"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (0, b"\xffO\xffQ", "a JPEG 2000"),
    (0, b"PK\3\4", "an archive"),
    (0, b"\x1f\x8b", "an archive"),
    (0, b"\x1aE\xdf\xa3", "a video (WebM or Matroska)"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    (4, b"ftypavi", "an AVIF"),
    (4, b"ftyphe", "a HEIC (HEIF), the format of iPhones"),
    (4, b"ftypmif1", "a HEIC (HEIF), the format of iPhones"),
    (4, b"ftypmsf1", "a HEIC (HEIF), the format of iPhones"),
    (4, b"ftyp", "a video (MP4 or QuickTime)"),
)
"""Where the signature of a format is in the file, the signature, and the name of the format."""
MARKUP_KINDS = ((b"<svg", "an SVG, a drawing without pixels"), (b"<html", "a web page (HTML)"), (b"<!doctype html", "a web page (HTML)"))
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
}


@dataclass(frozen=True)
class PictureFile:
    """`data`: the file to decode. `orientation`: as in EXIF, 1 to 8. `profile`: its colour profile (ICC).

    `ended` is false for a JPEG without its end, of which some pixels may be missing.
    """

    data: bytes
    orientation: int = NORMAL
    profile: bytes | None = None
    text: dict[str, Chunk] = field(default_factory=dict)
    ended: bool = True


def plain_chunks(texts: dict[str, str]) -> dict[str, Chunk]:
    return {key: (text, "", "") for key, text in texts.items()}


def detect_format(data: bytes) -> str | None:
    """`PNG`, `JPEG`, `WEBP`, `GIF` or `BMP`, by the content alone; None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for signature, name in SIGNATURES.items() if data.startswith(signature)), None)


def describe_kind(data: bytes) -> str:
    """What a file is that is no picture that we decode, for a message."""
    if not data:
        return "empty"
    kind = next((name for offset, signature, name in FILE_KINDS if data.startswith(signature, offset)), None)
    start = data[:1000].lower()
    return kind or next((name for tag, name in MARKUP_KINDS if tag in start), "of an unknown format")
