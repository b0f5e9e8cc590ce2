"""The operator's list of words and phrases by category, and the categories of which a text has one.

A file has `[category]` lines, each followed by its words and phrases, one a line; `#` begins a comment. `word*` admits any ending.
Case, width and compatibility forms (NFKC), invisible characters (contracts/invisible_characters.py) and the kind of white space make no
difference. A word is found where it stands alone: an English one not inside another, a Korean one also before a particle. Scripts without
spaces, such as Chinese, Japanese and Thai, have no such boundary: there a word is found wherever it is written. Spelling with other
characters (`w0rd`) is not undone.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from contracts.invisible_characters import remove_invisible

MAX_FILE_BYTES, MAX_PHRASE_CHARS, MAX_MARKS = 8 << 20, 64, 30
"""MAX_MARKS: combining marks in a row, as in Unicode's stream-safe format; their order takes quadratic time, so that more are dropped."""
CATEGORY = re.compile(r"\[([a-z0-9/_-]{1,64})\]")
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Code points of the scripts that are written without spaces, first and last."""
PARTICLES = frozenset({
    *("은", "는", "이", "가", "을", "를", "의", "에", "에서", "에게", "에게서", "한테", "께", "께서"),
    *("로", "으로", "와", "과", "랑", "이랑", "하고", "도", "만", "까지", "부터", "처럼", "보다", "마다"),
    *("조차", "밖에", "나", "이나", "라도", "이라도", "들", "들이", "들을", "들은", "들의", "들도", "야", "이야"),
    *("아", "여", "이여", "요", "이요", "다", "이다", "입니다", "예요", "이에요"),
})  # fmt: skip
"""Korean particles and forms of the copula, which follow a noun without a space."""
LONGEST_PARTICLE = max(map(len, PARTICLES))


def normalize(text: str) -> str:
    """NFKC and case folding, without invisible characters, with single spaces. Takes time that is linear in the length.

    What is invisible is removed first: between a character and its mark, or the parts of a Korean syllable, it would prevent composition.
    """
    plain = limit_marks(remove_invisible(text))
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", plain).casefold()).split())


def limit_marks(text: str) -> str:
    """The text with at most MAX_MARKS combining marks in a row."""
    if not any(map(unicodedata.combining, text)):
        return text
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MAX_MARKS:
            kept.append(character)
    return "".join(kept)


@cache
def joins(character: str) -> bool:
    """Whether the character is part of a word and needs a space, or the like, between it and the next word."""
    is_word = character.isalnum() or unicodedata.category(character).startswith("M")
    return is_word and not any(first <= ord(character) <= last for first, last in UNSPACED)


def is_boundary(before: str, after: str) -> bool:
    """Whether a word may end or begin between two neighbours."""
    return not (joins(before) and joins(after))


def is_hangul(character: str) -> bool:
    return "가" <= character <= "힣"


@dataclass(frozen=True)
class WordList:
    """`entries`: each normalized phrase with its categories, and whether it admits any ending there. `lengths`: of the phrases, by their
    first character."""

    entries: Mapping[str, Mapping[str, bool]]
    lengths: Mapping[str, tuple[int, ...]]

    @property
    def categories(self) -> list[str]:
        return sorted({category for found in self.entries.values() for category in found})

    def find(self, text: str) -> list[str]:
        """The categories of which the text has a word, sorted. At most MAX_PHRASE_CHARS comparisons a character."""
        normal, found = normalize(text), set[str]()
        joining = [False, *map(joins, normal)]
        starts = (start for start, first in enumerate(normal) if first in self.lengths and not (joining[start] and joining[start + 1]))
        for start in starts:
            for length in self.lengths[normal[start]]:
                if entry := self.entries.get(normal[start : start + length]):
                    found |= {category for category, is_open in entry.items() if is_open or ends_at(normal, start + length)}
        return sorted(found)


def ends_at(text: str, end: int) -> bool:
    """Whether the word that ends before `end` stands alone there, or before a Korean particle."""
    if end >= len(text) or is_boundary(text[end - 1], text[end]):
        return True
    if not is_hangul(text[end - 1]):
        return False
    rest = text[end : end + LONGEST_PARTICLE + 1]
    ends = (index for index, (before, after) in enumerate(pairwise(rest), 1) if is_boundary(before, after))
    return rest[: next(ends, len(rest))] in PARTICLES


def read_word_list(path: Path) -> WordList:
    """Raises ValueError that names the file and the line, OSError."""
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise ValueError(f"{path} has {size} bytes; at most {MAX_FILE_BYTES} are read")
    try:
        return parse_word_list(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"the word list {path}: {error}") from error


def parse_word_list(text: str) -> WordList:
    """Raises ValueError that names the line."""
    entries: dict[str, dict[str, bool]] = defaultdict(dict)
    for category, line in read_lines(text):
        is_open = line.endswith("*")
        phrase = normalize(line.removesuffix("*"))
        entries[phrase][category] = is_open or entries[phrase].get(category, False)
    if not entries:
        raise ValueError("it has no word")
    lengths: dict[str, set[int]] = defaultdict(set)
    for phrase in entries:
        lengths[phrase[0]].add(len(phrase))
    return WordList(dict(entries), {first: tuple(sorted(found)) for first, found in lengths.items()})


def read_lines(text: str) -> Iterator[tuple[str, str]]:
    """Each entry with its category."""
    category = None
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if entry.startswith("["):
            if not (header := CATEGORY.fullmatch(entry.lower())):
                raise ValueError(f"line {number}: a category is [name], of a–z, 0–9, /, _ and -, such as [self-harm]")
            category = header[1]
        elif category is None:
            raise ValueError(f"line {number}: a [category] comes before the first word")
        elif not 1 <= len(normalize(entry.removesuffix("*"))) <= MAX_PHRASE_CHARS:
            raise ValueError(f"line {number}: a word or phrase has 1 to {MAX_PHRASE_CHARS} characters")
        else:
            yield category, entry
