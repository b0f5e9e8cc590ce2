"""Compares the text that was read in an advertisement with the ordered copy: character errors, calls to action and the height of the text.

Texts are compared by the characters of words, digits and marks alone, after Unicode's NFKC (which composes Hangul) and case folding:
blanks, punctuation and symbols do not count, because they depend on the line breaks and on the emoji that are not drawn; nor does what
belongs to a symbol, such as the variation selector of an emoji, or the digit and the mark of a keycap.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.drawn_text import KEYCAP, split_clusters
from contracts.invisible_characters import remove_invisible
from contracts.verdict import Region, TextLine

MAX_CHARACTER_ERRORS = 0.2
"""Character error rate from which a text counts as not readable. Clear text has less than 0.05."""
MATCHING_LINE_ERRORS = 0.5
"""Where the text's region is unknown, a line with at most this error rate belongs to the copy."""
MIN_TEXT_SHARE, MIN_TEXT_PIXELS = 0.025, 14.0
"""A line is too small below this share of the picture's height, or below these pixels. A line is half as high again as its font."""
MAX_LINES, MAX_TEXT_CHARS = 32, 1000
MAX_COMPARED_CHARS = 4000
"""Of a text that is compared; the longest ad copy has as many, unless its characters stand for several."""
HANGUL = ("\uac00", "\ud7a3")
COMPARED_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "Mn", "Mc"})
"""Characters of words, digits and marks; but no mark around one (Me), such as a circle, which is no part of it."""


@dataclass(frozen=True)
class ReadLine:
    """`text`: None where the model lacks its characters. `region`: shares of the picture. `height`: pixels of the picture."""

    text: str | None
    confidence: float
    region: Region
    height: float


@dataclass(frozen=True)
class Reading:
    """What was read in a picture. `unknown`: characters of the copy that the model lacks. `failure`: the code why nothing could be read."""

    lines: Sequence[ReadLine] = ()
    model: str = ""
    unknown: str = ""
    failure: str | None = None


def compare_copy(reading: Reading, copy: str | None, region: Region | None, picture_height: int, words: Iterable[str]) -> dict[str, Any]:
    """The fields of the evidence. `region`: of the text. `words`: calls to action. A value that cannot be measured is absent."""
    if reading.failure:
        return {"text_unread": reading.failure}
    fields: dict[str, Any] = {"ocr_model": reading.model}
    expected = fold_compared(copy or "")
    rates = [line_error_rate(line.text or "", expected) for line in reading.lines]
    is_copy = [
        _is_inside(line.region, region) if region else rate is not None and rate <= MATCHING_LINE_ERRORS
        for line, rate in zip(reading.lines, rates, strict=True)
    ]
    own = [line for line, belongs in zip(reading.lines, is_copy, strict=True) if belongs]
    if own:
        height = min(line.height for line in own)
        share = round(height / picture_height, 4)
        small = share < MIN_TEXT_SHARE or height < MIN_TEXT_PIXELS
        fields |= {"text_height": round(height, 1), "text_height_share": min(1.0, share), "text_too_small": small}
    if reading.unknown:
        return fields | {"unknown_characters": reading.unknown}
    texts = [line.text or "" for line in own]
    fields["text_read"] = "\n".join(texts)[:MAX_TEXT_CHARS]
    fields["character_error_rate"] = character_error_rate("".join(texts), expected)
    fields["calls_to_action"] = find_calls_to_action([line.text or "" for line in reading.lines], words)
    lines = [
        TextLine(text=(line.text or "")[:MAX_TEXT_CHARS], region=line.region, confidence=line.confidence, cer=rate if belongs else None)
        for line, rate, belongs in zip(reading.lines, rates, is_copy, strict=True)
    ]
    return fields | {"text_lines": sorted(lines, key=lambda line: line.cer is None)[:MAX_LINES]}


def fold_text(text: str) -> str:
    """Characters, digits and marks alone, composed, without case."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", remove_invisible(text)).casefold())
    return "".join(map(_compared_part, split_clusters(folded)))


def _compared_part(cluster: str) -> str:
    """A character of a word, or a digit, with its marks. Nothing of a symbol, a blank or a keycap, whose marks are no writing."""
    if KEYCAP in cluster or unicodedata.category(cluster[0])[0] not in "LN":
        return ""
    return "".join(char for char in cluster if unicodedata.category(char) in COMPARED_CATEGORIES)


def fold_compared(text: str) -> str:
    """At most MAX_COMPARED_CHARS of the folded text."""
    return fold_text(text)[:MAX_COMPARED_CHARS]


def character_error_rate(read: str, expected: str) -> float | None:
    """Edit distance by the length of `expected`, a folded copy: 0 for the same text, 1 when nothing was read. None without a copy."""
    return round(edit_distance(expected, fold_compared(read)) / len(expected), 4) if expected else None


def line_error_rate(line: str, expected: str) -> float | None:
    """The smallest edit distance between the line and any part of `expected`, a folded copy, by the length of the line."""
    read = fold_compared(line)
    return round(edit_distance(read, expected, anywhere=True) / len(read), 4) if read and expected else None


def edit_distance(pattern: str, text: str, *, anywhere: bool = False) -> int:
    """Levenshtein's distance. `anywhere`: to the part of `text` that is closest to `pattern`.

    Myers' algorithm in Hyyrö's form: one column of the matrix is two numbers, whose bits say where it rises and falls.
    """
    if not pattern:
        return 0 if anywhere else len(text)
    places: dict[str, int] = {}
    for index, char in enumerate(pattern):
        places[char] = places.get(char, 0) | 1 << index
    full, last = (1 << len(pattern)) - 1, 1 << (len(pattern) - 1)
    rises, falls, distance = full, 0, len(pattern)
    best = distance
    for char in text:
        equal = places.get(char, 0)
        diagonal = equal | falls
        horizontal = (((equal & rises) + rises) ^ rises) | equal
        grows, shrinks = falls | (full & ~(horizontal | rises)), rises & horizontal
        distance += bool(grows & last) - bool(shrinks & last)
        grows, shrinks = grows << 1 | (not anywhere), shrinks << 1
        rises, falls = full & (shrinks | ~(diagonal | grows)), full & grows & diagonal
        best = min(best, distance)
    return best if anywhere else distance


def find_calls_to_action(lines: Sequence[str], words: Iterable[str]) -> list[str]:
    """The words that the text contains, as they are listed, from the beginning of a read word to the end of one.

    A Korean word may have an ending. A blank of a phrase may be missing in what was read.
    """
    text = _fold_words(" ".join(lines))
    return [word for word in words if (folded := _fold_words(word)) and _has_phrase(text, folded)]


def _has_phrase(text: str, phrase: str) -> bool:
    """Both folded, with single blanks."""
    end = r"" if HANGUL[0] <= phrase[-1] <= HANGUL[1] else r"(?!\S)"
    return re.search(r"(?<!\S)" + re.escape(phrase).replace(r"\ ", " ?") + end, text) is not None


def _fold_words(text: str) -> str:
    """Folded words, separated by one blank."""
    return " ".join(filter(None, (fold_text(word) for word in text.translate(_SEPARATORS).split())))


class _Blanks(dict[int, str | int]):
    """Translates punctuation and symbols such as emoji to a blank, so that they separate words; an apostrophe is a part of its word."""

    def __missing__(self, code: int) -> str | int:
        category = unicodedata.category(chr(code))
        self[code] = " " if (category[0] == "P" and chr(code) not in "'’") or category == "So" else code
        return self[code]


_SEPARATORS = _Blanks()


def _is_inside(line: Region, region: Region) -> bool:
    """Whether the middle of the line is in the region."""
    x, y = line.x + line.width / 2, line.y + line.height / 2
    return region.x <= x <= region.x + region.width and region.y <= y <= region.y + region.height
