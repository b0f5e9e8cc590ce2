"""A text split into runs of one font and one direction, in the order in which they are drawn from left to right.

Pillow shapes one run at a time: it joins characters and reverses what is read from right to left. A text that one font can draw is one run.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from actors.imaging.fonts import FontFace
from bus.errors import PermanentError
from contracts.drawn_text import find_missing, split_clusters

RIGHT_TO_LEFT = frozenset({"R", "AL"})
NUMBERS = frozenset({"EN", "AN"})
WORD = re.compile(r"[^ ]+ *| +")


@dataclass(frozen=True)
class TextRun:
    """A part of a text that one font can draw. `direction`: None when the shaping finds it out, for a text of one run."""

    face: FontFace
    text: str
    direction: Literal["ltr", "rtl"] | None = None


def split_into_runs(text: str, faces: Sequence[FontFace]) -> list[TextRun]:
    """One run in the first font that supports the whole text, else one font for each word if possible, else for each cluster.

    Raises PermanentError("glyph-missing"), which names the character.
    """
    for face in faces:
        if face.supports(text):
            return [TextRun(face, text)]
    chosen = [(face, cluster) for word in WORD.findall(text) for face, cluster in choose_fonts(word, faces)]
    levels = find_levels([cluster for _, cluster in chosen])
    runs = [
        (level, TextRun(face, "".join(cluster for (_, cluster), _ in group), "rtl" if level % 2 else "ltr"))
        for (face, level), group in groupby(zip(chosen, levels, strict=True), key=lambda pair: (pair[0][0], pair[1]))
    ]
    return to_visual_order(runs)


def choose_fonts(word: str, faces: Sequence[FontFace]) -> Iterator[tuple[FontFace, str]]:
    """A cluster has one font. The blanks behind a word are drawn with its last cluster's font, which all have."""
    for face in faces:
        if face.supports(word):
            yield from ((face, cluster) for cluster in split_clusters(word))
            return
    face = faces[0]
    for cluster in split_clusters(word):
        face = face if cluster == " " else find_face(cluster, faces)
        yield face, cluster


def find_face(cluster: str, faces: Sequence[FontFace]) -> FontFace:
    """The first font that has the whole cluster. Raises PermanentError("glyph-missing")."""
    for face in faces:
        if face.supports(cluster):
            return face
    problem = find_missing(cluster, lambda _: False)
    raise PermanentError("glyph-missing", f"The text cannot be drawn: {problem}. Name one that has it in WATERMARK_FONTS.")


def find_levels(clusters: Sequence[str]) -> list[int]:
    """The embedding level of each cluster: even from left to right, odd from right to left.

    The rules of Unicode's algorithm for bidirectional text without controls: numbers run from left to right, blanks and signs take the
    direction that their neighbours share, and the first one with a direction says the direction of the whole.
    """
    kinds = [unicodedata.bidirectional(cluster[0]) for cluster in clusters]
    base = int(next((kind in RIGHT_TO_LEFT for kind in kinds if kind == "L" or kind in RIGHT_TO_LEFT), False))
    sides = find_sides(kinds, base)
    of_side = {False: 2 * base, True: 1}
    return [of_side[side] if not side or kind not in NUMBERS else 2 for kind, side in zip(kinds, sides, strict=True)]


def find_sides(kinds: Sequence[str], base: int) -> list[bool]:
    """Whether each cluster belongs to text from right to left. A number belongs to what is before it."""
    sides: list[bool | None] = []
    last = bool(base)
    for kind in kinds:
        if kind == "L" or kind in RIGHT_TO_LEFT:
            last = kind in RIGHT_TO_LEFT
        sides.append(last if kind == "L" or kind in RIGHT_TO_LEFT | NUMBERS else None)
    resolved = [bool(base) if side is None else side for side in sides]
    for before, after in pairwise(index for index, side in enumerate(sides) if side is not None):
        shared = resolved[before] if resolved[before] == resolved[after] else bool(base)
        resolved[before + 1 : after] = [shared] * (after - before - 1)
    return resolved


def to_visual_order(runs: Sequence[tuple[int, TextRun]]) -> list[TextRun]:
    """From the highest level down to 1, whatever is at that level or above is reversed."""
    ordered = list(runs)
    for level in range(max((level for level, _ in ordered), default=0), 0, -1):
        ordered = reverse_level(ordered, level)
    return [run for _, run in ordered]


def reverse_level(runs: Sequence[tuple[int, TextRun]], level: int) -> list[tuple[int, TextRun]]:
    parts = [(is_inside, list(part)) for is_inside, part in groupby(runs, key=lambda run: run[0] >= level)]
    return [run for is_inside, part in parts for run in (reversed(part) if is_inside else part)]
