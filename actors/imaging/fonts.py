"""Fonts: which characters each font can draw. A missing glyph is an error, never a box; shaping is needed, or no process starts.

Reads the bundled fonts (NanumGothic for Korean and much else, DejaVu Sans for the rest of Latin and for Arabic, Hebrew and more, Droid Sans
Fallback for Chinese and Japanese, Noto Sans for Thai and Devanagari) and further ones from the settings.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, chain
from mmap import ACCESS_READ, mmap
from pathlib import Path

from PIL import features

from bus.errors import PermanentError
from contracts.drawn_text import JOINERS, DrawnText, find_missing, prepare_text, split_clusters

FOLDER = Path(__file__).parent.parent / "fonts"
BUNDLED_FONTS = tuple(
    FOLDER / name
    for name in (
        "NanumGothic.ttf",
        "DejaVuSans.ttf",
        "DroidSansFallbackCJK.ttf",
        "NotoSansThai-Regular.ttf",
        "NotoSansDevanagari-Regular.ttf",
    )
)
CMAP_PRIORITIES = {(3, 10): 3, (0, 6): 3, (0, 4): 3, (3, 1): 2, (0, 3): 1}
SHAPING_CURE = (
    "Install it: `apt-get install libfribidi0` (Debian, Ubuntu), `dnf install fribidi`, `apk add fribidi` or `brew install fribidi`."
)


@dataclass(frozen=True)
class CodePoints:
    """Code points as ranges: the first and the last point of each, in order. As a set, those of our fonts would take 8 MB."""

    first: tuple[int, ...]
    last: tuple[int, ...]

    @classmethod
    def of(cls, points: Iterable[int]) -> "CodePoints":
        """`points`: mostly in order, as a font lists them."""
        ranges: list[list[int]] = []
        for point in points:
            if ranges and point == ranges[-1][1] + 1:
                ranges[-1][1] = point
            else:
                ranges.append([point, point])
        ranges.sort()
        return cls(tuple(first for first, _ in ranges), tuple(accumulate((last for _, last in ranges), max)))  # ranges may overlap

    def __contains__(self, point: int) -> bool:
        index = bisect_right(self.first, point) - 1
        return index >= 0 and point <= self.last[index]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(map(range, self.first, (last + 1 for last in self.last)))


@dataclass(frozen=True)
class FontFace:
    """A font file and the code points for which it has a glyph. Its path identifies it: runs of text are looked up by their font, and to
    hash thousands of ranges takes longer than to measure a run.
    """

    path: Path
    code_points: CodePoints = field(compare=False)

    def supports(self, text: str) -> bool:
        """Whether it has all characters; the shaping of a text needs no glyph for joiners."""
        return all(ord(char) in self.code_points or char in JOINERS for char in text)


@cache
def load_fonts(extra: tuple[Path, ...] = ()) -> tuple[FontFace, ...]:
    """The bundled fonts, then further ones. Raises OSError or ValueError when a file is no TrueType or OpenType font."""
    return tuple(FontFace(path, read_code_points(path)) for path in (*BUNDLED_FONTS, *extra))


def shaping_problem() -> str | None:
    """Why texts cannot be shaped, with the cure; None when they can. Pillow has the library raqm and loads FriBiDi when it is there."""
    if features.check("raqm"):
        return None
    return f"Pillow finds no FriBiDi library: names in Arabic, Hebrew or Hindi would be drawn reversed and disjointed. {SHAPING_CURE}"


def open_fonts(extra: tuple[Path, ...] = ()) -> tuple[FontFace, ...]:
    """The fonts of a step that draws texts, at its start. Raises PermanentError("shaping-missing"); else as `load_fonts`."""
    if problem := shaping_problem():
        raise PermanentError("shaping-missing", problem)
    return load_fonts(extra)


def prepare_drawing(text: str, faces: Iterable[FontFace]) -> DrawnText:
    """The text to draw, and what is left out of it. Raises PermanentError("glyph-missing"), which names the character."""
    faces = tuple(faces)

    def has_glyph(characters: str) -> bool:
        return any(face.supports(characters) for face in faces)

    prepared = prepare_text(text, has_glyph)
    if problem := find_missing(prepared.text, has_glyph):
        message = f"The text cannot be drawn: {problem}. Name one that has it in WATERMARK_FONTS, or sign with a picture."
        raise PermanentError("glyph-missing", message)
    clusters = [(whole, whole if has_glyph(whole) else whole[0]) for whole in split_clusters(prepared.text)]
    marks = "".join(whole[len(drawn) :] for whole, drawn in clusters)  # of fonts other than their base character's
    return DrawnText("".join(drawn for _, drawn in clusters), prepared.left_out + marks)


def find_fonts(extra: tuple[Path, ...]) -> tuple[FontFace, ...]:
    """The fonts of a process that checks texts, and draws none: none where a further font is on the machines that draw alone.

    Raises OSError or ValueError as `load_fonts`.
    """
    return load_fonts(extra) if all(path.is_file() for path in extra) else ()


def check_drawable(text: str, faces: Sequence[FontFace]) -> None:
    """Before anything is drawn. Raises PermanentError("glyph-missing"). Without fonts nothing is checked."""
    if faces:
        prepare_drawing(text, faces)


def read_code_points(path: Path) -> CodePoints:
    """All code points of the `cmap` table (formats 4 and 12) whose glyph is not 0, the missing-glyph box. Raises OSError, ValueError."""
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as font:
            return read_character_map(font)
    except (ValueError, struct.error, IndexError) as error:
        raise ValueError(f"{path} is no usable font (TrueType or OpenType): {error}") from None


def read_character_map(font: mmap) -> CodePoints:
    table = read_cmap_table(font)
    count = struct.unpack_from(">H", table, 2)[0]
    records = [struct.unpack_from(">HHI", table, 4 + 8 * index) for index in range(count)]
    unicode_maps = [
        (CMAP_PRIORITIES[platform, encoding], offset) for platform, encoding, offset in records if (platform, encoding) in CMAP_PRIORITIES
    ]
    if not unicode_maps:
        raise ValueError("it has no Unicode character map")
    subtable = table[max(unicode_maps)[1] :]
    table_format = struct.unpack_from(">H", subtable)[0]
    if table_format not in (4, 12):
        raise ValueError(f"its character map has the format {table_format}, which is not supported")
    return CodePoints.of(format4_code_points(subtable) if table_format == 4 else format12_code_points(subtable))


def read_cmap_table(font: mmap) -> bytes:
    """The `cmap` table, found by the table directory: tag, checksum, offset, length (OpenType specification). Raises ValueError."""
    for index in range(struct.unpack_from(">H", font, 4)[0]):
        tag, _, offset, length = struct.unpack_from(">4sIII", font, 12 + 16 * index)
        if tag == b"cmap":
            return font[offset : offset + length]
    raise ValueError("it has no cmap table")


def format4_code_points(table: bytes) -> Iterable[int]:
    """Format 4: segments of the basic multilingual plane."""
    count = struct.unpack_from(">H", table, 6)[0] // 2
    column = f">{count}H"
    ends = struct.unpack_from(column, table, 14)
    starts = struct.unpack_from(column, table, 16 + 2 * count)
    deltas = struct.unpack_from(column, table, 16 + 4 * count)
    ranges_at = 16 + 6 * count
    offsets = struct.unpack_from(column, table, ranges_at)
    for index in range(count):
        for point in range(starts[index], min(ends[index], 0xFFFE) + 1):
            glyph = point
            if offsets[index]:
                glyph = struct.unpack_from(">H", table, ranges_at + 2 * index + offsets[index] + 2 * (point - starts[index]))[0]
            if (glyph or not offsets[index]) and (glyph + deltas[index]) & 0xFFFF:
                yield point


def format12_code_points(table: bytes) -> Iterable[int]:
    """Format 12: groups of all planes."""
    for index in range(struct.unpack_from(">I", table, 12)[0]):
        start, end, glyph = struct.unpack_from(">III", table, 16 + 12 * index)
        yield from range(start + (glyph == 0), end + 1)
