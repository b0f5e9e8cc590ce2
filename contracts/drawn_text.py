"""A text that is drawn on a picture: one line of visible characters, without emoji. Says which character no font can draw.

The rules are the same where an order is received and where its text is drawn. `has_glyph` says whether any of the fonts has a character.
"""

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HasGlyph = Callable[[str], bool]
MAX_MARKS = 4
"""Marks that one character keeps. Vietnamese, Thai and Hebrew need up to three; more is not a name."""
JOINERS = "\u200c\u200d"
"""ZWNJ and ZWJ: some scripts need them. Between other characters they are invisible and dropped."""
INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs"})
FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f")
"""Fillers, which are blank, whatever their category says."""
EMOJI = (range(0x1F000, 0x1FB00), range(0xE0020, 0xE0080))
"""Pictographs, flags, skin tones; and the tags of flags."""
KEYCAP, REPLACEMENT = "\u20e3", "\ufffd"


@dataclass(frozen=True)
class DrawnText:
    """`left_out`: the emoji, and other symbols without a glyph, that the text had."""

    text: str
    left_out: str


def clean_text(text: str) -> str:
    """One line in NFC, as macOS may send accents and Korean syllables decomposed. Invisible characters and excess marks are dropped."""
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # two halves of an emoji are one
    composed = unicodedata.normalize("NFC", " ".join(joined.split()))
    clean = "".join(cluster if is_emoji(cluster) else visible_part(cluster) for cluster in split_clusters(composed))
    return unicodedata.normalize("NFC", " ".join(clean.split()))


def prepare_text(text: str, has_glyph: HasGlyph) -> DrawnText:
    """The text to draw. Each of its characters has a glyph, or `find_missing` names it."""
    drawn: list[str] = []
    left_out: list[str] = []
    for cluster in split_clusters(clean_text(text)):
        plain = "".join(plain_form(character, has_glyph) for character in cluster)
        is_left_out = is_emoji(plain) or is_missing_symbol(plain, has_glyph)
        (left_out if is_left_out else drawn).append(cluster if is_left_out else plain)
    return DrawnText(" ".join("".join(drawn).split()), "".join(left_out).replace(REPLACEMENT, ""))


def plain_form(character: str, has_glyph: HasGlyph) -> str:
    """The character; its compatible form where only that has a glyph, such as K for the 𝓚 of a decorated name."""
    if character in JOINERS or has_glyph(character):
        return character
    plain = unicodedata.normalize("NFKC", character)
    return plain if all(map(has_glyph, plain)) else character


def find_missing(text: str, has_glyph: HasGlyph) -> str | None:
    """What is wrong with the first character of a prepared text that has no glyph; None when all have one."""
    for character in text:
        if character not in JOINERS and not has_glyph(character):
            name = unicodedata.name(character, "unnamed")
            return f"no font has {character!r} (U+{ord(character):04X}, {name})"
    return None


def split_clusters(text: str) -> Iterator[str]:
    """Each character with its marks, each emoji with what belongs to it."""
    cluster = ""
    for character in text:
        if cluster and not continues(cluster, character):
            yield cluster
            cluster = ""
        cluster += character
    if cluster:
        yield cluster


def continues(cluster: str, character: str) -> bool:
    if is_pictograph(character):
        is_flag = is_regional(character) and len(cluster) == 1 and is_regional(cluster)
        return is_flag or cluster[-1] == "\u200d" or "\U0001f3fb" <= character <= "\U0001f3ff" or ord(character) in EMOJI[1]
    return unicodedata.category(character).startswith("M") or character in JOINERS


def is_pictograph(character: str) -> bool:
    return any(ord(character) in points for points in EMOJI)


def is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def is_emoji(cluster: str) -> bool:
    return is_pictograph(cluster[0]) or KEYCAP in cluster


def is_missing_symbol(cluster: str, has_glyph: HasGlyph) -> bool:
    """A sign such as ☃ is drawn where a font has it, or a character for private use. What replaced a broken character is not drawn."""
    is_symbol = unicodedata.category(cluster[0]) in ("So", "Sk", "Co")
    return cluster[0] == REPLACEMENT or (is_symbol and find_missing(cluster, has_glyph) is not None)


def visible_part(cluster: str) -> str:
    """A cluster without variation selectors, controls of direction, fillers and excess marks."""
    visible, marks = "", 0
    for character in cluster:
        category = unicodedata.category(character)
        marks += category in ("Mn", "Me")
        if is_variation_selector(character) or character in FILLERS or marks > MAX_MARKS:
            continue
        if category not in INVISIBLE_CATEGORIES or (character in JOINERS and needs_joiners(cluster[0])):
            visible += character
    return visible


def is_variation_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef" or "\u180b" <= character <= "\u180d"


def needs_joiners(character: str) -> bool:
    """Whether the character is Arabic, Syriac or Mongolian, or of a script of India and its neighbours."""
    return unicodedata.bidirectional(character) == "AL" or "\u0900" <= character <= "\u0dff" or "\u1800" <= character <= "\u18af"
