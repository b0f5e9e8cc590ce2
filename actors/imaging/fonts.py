"""Fonts: which code points each font supports, and a text split into runs of one font each. A missing glyph is an error, never a box.

Reads the bundled fonts (NanumGothic for Korean and much else, DejaVu Sans for the rest of Latin) and further ones from the settings.
"""

import struct
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from bus.errors import PermanentError

BUNDLED_FONTS = (Path(__file__).parent.parent / "fonts" / "NanumGothic.ttf", Path(__file__).parent.parent / "fonts" / "DejaVuSans.ttf")
CMAP_PRIORITIES = {(3, 10): 3, (0, 6): 3, (0, 4): 3, (3, 1): 2, (0, 3): 1}
INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs"})


@dataclass(frozen=True)
class FontFace:
    """A font file and the code points for which it has a glyph."""

    path: Path
    code_points: frozenset[int]

    def supports(self, text: str) -> bool:
        return all(ord(char) in self.code_points for char in text)


@dataclass(frozen=True)
class TextRun:
    """A part of a text that one font can draw."""

    face: FontFace
    text: str


@cache
def load_fonts(extra: tuple[Path, ...] = ()) -> tuple[FontFace, ...]:
    """The bundled fonts, then further ones. Raises OSError or ValueError when a file is no TrueType or OpenType font."""
    return tuple(FontFace(path, read_code_points(path)) for path in (*BUNDLED_FONTS, *extra))


def normalize_text(text: str) -> str:
    """One line in NFC (a Korean syllable may arrive decomposed), without invisible characters."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(char for char in composed if char == " " or unicodedata.category(char) not in INVISIBLE_CATEGORIES)


def split_into_runs(text: str, faces: Sequence[FontFace]) -> list[TextRun]:
    """One run in the first font that supports the whole text, else runs of the first font that supports each character.

    Raises PermanentError("glyph-missing"), which names the character.
    """
    for face in faces:
        if face.supports(text):
            return [TextRun(face, text)]
    chosen = [(find_face(char, faces), char) for char in text]
    return [TextRun(face, "".join(char for _, char in group)) for face, group in groupby(chosen, key=lambda pair: pair[0])]


def find_face(character: str, faces: Iterable[FontFace]) -> FontFace:
    for face in faces:
        if face.supports(character):
            return face
    name = unicodedata.name(character, "unnamed")
    message = f"No font has {character!r} (U+{ord(character):04X}, {name}). Name one in WATERMARK_FONTS, or sign with a picture."
    raise PermanentError("glyph-missing", message)


def read_code_points(path: Path) -> frozenset[int]:
    """All code points of the `cmap` table (formats 4 and 12) whose glyph is not 0, the missing-glyph box. Raises ValueError."""
    table = read_cmap_table(path.read_bytes())
    count = struct.unpack_from(">H", table, 2)[0]
    records = [struct.unpack_from(">HHI", table, 4 + 8 * index) for index in range(count)]
    unicode_maps = [
        (CMAP_PRIORITIES[platform, encoding], offset) for platform, encoding, offset in records if (platform, encoding) in CMAP_PRIORITIES
    ]
    if not unicode_maps:
        raise ValueError(f"{path} has no Unicode character map")
    subtable = table[max(unicode_maps)[1] :]
    table_format = struct.unpack_from(">H", subtable)[0]
    if table_format not in (4, 12):
        raise ValueError(f"{path} has a character map of format {table_format}, which is not supported")
    return frozenset(format4_code_points(subtable) if table_format == 4 else format12_code_points(subtable))


def read_cmap_table(font: bytes) -> bytes:
    """The `cmap` table, found by the table directory: tag, checksum, offset, length (OpenType specification). Raises ValueError."""
    for index in range(struct.unpack_from(">H", font, 4)[0]):
        tag, _, offset, length = struct.unpack_from(">4sIII", font, 12 + 16 * index)
        if tag == b"cmap":
            return font[offset : offset + length]
    raise ValueError("the font has no cmap table")


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
