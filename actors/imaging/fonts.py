"""Letters: which font has which glyph, and a text split into runs of fonts that have them all. A box instead of a letter is never drawn.

Reads the fonts beside it (NanumGothic for Korean and much else, DejaVu Sans for the rest of Latin) and further ones from the settings.
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
    path: Path
    code_points: frozenset[int]

    def supports(self, text: str) -> bool:
        return all(ord(letter) in self.code_points for letter in text)


@dataclass(frozen=True)
class TextRun:
    """A piece of text that one font can draw."""

    face: FontFace
    text: str


@cache
def load_fonts(extra: tuple[Path, ...] = ()) -> tuple[FontFace, ...]:
    """The shipped fonts, then further ones. Raises OSError or ValueError when a file is no TrueType or OpenType font."""
    return tuple(FontFace(path, read_code_points(path)) for path in (*BUNDLED_FONTS, *extra))


def normalize_text(text: str) -> str:
    """One line, composed (a Korean syllable may come as its parts), without what has no shape."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(letter for letter in composed if letter == " " or unicodedata.category(letter) not in INVISIBLE_CATEGORIES)


def split_into_runs(text: str, faces: Sequence[FontFace]) -> list[TextRun]:
    """One run in the first font that has every letter, else the fewest that are easily found.

    Raises PermanentError("glyph-missing") that names the letter.
    """
    for face in faces:
        if face.supports(text):
            return [TextRun(face, text)]
    chosen = [(find_face(letter, faces), letter) for letter in text]
    return [TextRun(face, "".join(letter for _, letter in group)) for face, group in groupby(chosen, key=lambda pair: pair[0])]


def find_face(character: str, faces: Iterable[FontFace]) -> FontFace:
    for face in faces:
        if face.supports(character):
            return face
    name = unicodedata.name(character, "a letter without a name")
    message = f"No font has {character!r} (U+{ord(character):04X}, {name}). Name one in WATERMARK_FONTS, or sign with a picture."
    raise PermanentError("glyph-missing", message)


def read_code_points(path: Path) -> frozenset[int]:
    """Every code point for which a font has a glyph of its own: the `cmap` table, formats 4 and 12, without glyph 0, the box."""
    table = read_cmap_table(path.read_bytes())
    count = struct.unpack_from(">H", table, 2)[0]
    records = [struct.unpack_from(">HHI", table, 4 + 8 * index) for index in range(count)]
    known = [
        (CMAP_PRIORITIES[platform, encoding], offset) for platform, encoding, offset in records if (platform, encoding) in CMAP_PRIORITIES
    ]
    if not known:
        raise ValueError(f"{path} has no Unicode character map")
    part = table[max(known)[1] :]
    form = struct.unpack_from(">H", part)[0]
    if form not in (4, 12):
        raise ValueError(f"{path} has a character map of format {form}, which is not read")
    return frozenset(format4_code_points(part) if form == 4 else format12_code_points(part))


def read_cmap_table(font: bytes) -> bytes:
    """A table's directory entry: tag, checksum, offset, length (OpenType specification, "Table directory")."""
    for index in range(struct.unpack_from(">H", font, 4)[0]):
        tag, _, offset, length = struct.unpack_from(">4sIII", font, 12 + 16 * index)
        if tag == b"cmap":
            return font[offset : offset + length]
    raise ValueError("the font has no cmap table")


def format4_code_points(table: bytes) -> Iterable[int]:
    """Format 4: segments of the basic plane."""
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
            if (glyph + deltas[index]) & 0xFFFF if glyph or not offsets[index] else 0:
                yield point


def format12_code_points(table: bytes) -> Iterable[int]:
    """Format 12: groups over all planes."""
    for index in range(struct.unpack_from(">I", table, 12)[0]):
        start, end, glyph = struct.unpack_from(">III", table, 16 + 12 * index)
        yield from range(start + (glyph == 0), end + 1)
