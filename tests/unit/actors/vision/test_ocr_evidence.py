"""Character errors against the ordered copy, calls to action, the height of the text, and the issues that follow."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.vision.evidence import find_text_issues
from actors.vision.ocr_evidence import (
    HANGUL,
    Reading,
    ReadLine,
    character_error_rate,
    compare_copy,
    edit_distance,
    find_calls_to_action,
    fold_text,
    line_error_rate,
)
from actors.vision.ocr_settings import CALLS_TO_ACTION
from contracts.drawn_text import EMOJI, prepare_text
from contracts.verdict import Evidence, Region
from tests.unit.actors.vision.test_evidence import make_verdict

UPPER = Region(x=0, y=0, width=1, height=0.5)
WORDS = st.text("abc", max_size=9)


def read_line(text: str | None, y: float = 0.1, height: float = 40.0) -> ReadLine:
    return ReadLine(text, 0.9, Region(x=0.1, y=y, width=0.5, height=0.05), height)


def matrix_distance(one: str, other: str, *, anywhere: bool = False) -> int:
    """The definition: a matrix, row by row."""
    row = [0 if anywhere else column for column in range(len(other) + 1)]
    for index, char in enumerate(one, 1):
        previous, row = row, [index]
        for column, own in enumerate(other, 1):
            row.append(min(previous[column] + 1, row[-1] + 1, previous[column - 1] + (char != own)))
    return min(row) if anywhere else row[-1]


@given(WORDS, WORDS, st.booleans())
def test_edit_distance_is_that_of_the_matrix(one: str, other: str, anywhere: bool) -> None:
    assert edit_distance(one, other, anywhere=anywhere) == matrix_distance(one, other, anywhere=anywhere)


@pytest.mark.parametrize(
    ("read", "copy", "rate"),
    [
        ("fresh ramen BUY NOW", "Fresh ramen.\nBuy now!", 0.0),
        ("따뜻한 한그릇", "따뜻한 한 그릇", 0.0),
        ("\u1112\u1161\u11ab", "\ud55c", 0.0),
        ("Ｓａｌｅ", "sale", 0.0),
        ("", "sale", 1.0),
        ("sole", "sale", 0.25),
        ("salesalesale", "sale", 2.0),
        ("sale", "🍜 !", None),
    ],
)
def test_character_error_rate_counts_letters_alone(read: str, copy: str, rate: float | None) -> None:
    """Case, blanks, punctuation, decomposed Hangul, width and emoji make no difference."""
    assert character_error_rate(read, fold_text(copy)) == rate


def test_line_is_compared_with_its_part_of_the_copy() -> None:
    assert line_error_rate("buy now", fold_text("Fresh ramen. Buy now! Only today.")) == 0.0
    assert line_error_rate("bvy now", fold_text("Fresh ramen. Buy now!")) == pytest.approx(1 / 6, abs=1e-4)
    assert (line_error_rate("...", "sale"), line_error_rate("sale", "")) == (None, None)


def test_long_texts_are_compared_in_little_time() -> None:
    """The matrix would have 16 million fields."""
    assert edit_distance("ab" * 2000, "ba" * 2000) == 2


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["Design upgrade. Get yourself a coat, become inspired"], []),
        (["the bookshop nowhere", "Get your s", "sig nup"], []),
        (["Sale🔥Buy👉now"], ["buy", "buy now"]),
        (["Fresh ramen.", "Buy now!"], ["buy", "buy now"]),
        (["BUYNOW"], ["buy now"]),
        (["the bookshop of Mr. Buyer"], []),
        (["지금 구매하세요"], ["지금 구매", "구매"]),
        (["맛있는 한 그릇"], []),
        ([], []),
    ],
)
def test_calls_to_action_are_whole_words(lines: list[str], found: list[str]) -> None:
    assert find_calls_to_action(lines, CALLS_TO_ACTION) == found


@pytest.mark.parametrize("word", CALLS_TO_ACTION)
def test_listed_call_is_found_with_or_without_its_blanks_and_in_no_other_word(word: str) -> None:
    """Also where its characters are divided into other words. A Korean word may have an ending."""
    is_korean = HANGUL[0] <= word[-1] <= HANGUL[1]
    closed = word.replace(" ", "")
    divided = [f"{closed[:place]} {closed[place:]}" for place in range(1, len(closed))]
    assert [text for text in (word, word.upper(), closed, f"a {closed} b") if find_calls_to_action([text], [word]) != [word]] == []
    others = [f"x{word}", f"x{closed}", *(text for text in divided if text != word and word.count(" ") < 2)]
    others += [] if is_korean else [f"{word}x", f"{closed}x"]
    assert [text for text in others if find_calls_to_action([text], [word])] == []


def test_only_lines_in_the_region_are_compared() -> None:
    lines = [read_line("Fresh ramen"), read_line("Buy n0w", height=30), read_line("EXIT", y=0.8, height=6)]
    fields = compare_copy(Reading(lines, "m"), "Fresh ramen, buy now", UPPER, 400, ("buy", "exit"))
    evidence = Evidence.model_validate(fields)
    assert (evidence.text_read, evidence.character_error_rate) == ("Fresh ramen\nBuy n0w", 0.0625)
    assert (evidence.text_height, evidence.text_height_share, evidence.text_too_small) == (30, 0.075, False)
    assert evidence.calls_to_action == ["buy", "exit"]
    assert evidence.text_lines is not None
    assert [(line.text, line.cer) for line in evidence.text_lines] == [("Fresh ramen", 0.0), ("Buy n0w", 0.1667), ("EXIT", None)]


def test_without_region_lines_that_match_belong_to_the_copy() -> None:
    lines = [read_line("Fresh ramen"), read_line("EXIT", height=6)]
    fields = compare_copy(Reading(lines, "m"), "Fresh ramen", None, 400, ())
    assert (fields["text_read"], fields["character_error_rate"], fields["text_height"]) == ("Fresh ramen", 0.0, 40)


def test_text_with_unknown_characters_has_a_height_and_no_error_rate() -> None:
    fields = compare_copy(Reading([read_line(None)], "m", unknown="한"), "한", UPPER, 400, ("구매",))
    assert fields == {"ocr_model": "m", "text_height": 40, "text_height_share": 0.1, "text_too_small": False, "unknown_characters": "한"}


def test_unread_picture_has_only_the_reason() -> None:
    assert compare_copy(Reading(failure="ocr-too-costly"), "sale", UPPER, 400, ()) == {"text_unread": "ocr-too-costly"}


@pytest.mark.parametrize(("height", "picture_height", "small"), [(24, 1000, True), (26, 1000, False), (13, 100, True), (15, 100, False)])
def test_text_below_a_fortieth_or_fourteen_pixels_is_too_small(height: float, picture_height: int, small: bool) -> None:
    fields = compare_copy(Reading([read_line("sale", height=height)], "m"), "sale", UPPER, picture_height, ())
    assert fields["text_too_small"] is small


@pytest.mark.parametrize(
    ("evidence", "cta_present", "words"),
    [
        ({"character_error_rate": 0.0, "calls_to_action": []}, True, "has none of the words"),
        ({"character_error_rate": 0.0, "calls_to_action": ["buy"]}, False, "“buy” was read"),
        ({"character_error_rate": 0.5, "calls_to_action": []}, True, "not readable: 50%"),
        ({"text_too_small": True, "text_height": 8.5, "text_height_share": 0.0166}, True, "too small: 8.5 pixels, 1.7% of"),
        ({"character_error_rate": 0.2, "calls_to_action": ["buy"]}, True, None),
        ({"character_error_rate": 0.0, "calls_to_action": []}, False, None),
        ({"calls_to_action": []}, True, None),
        ({}, True, None),
    ],
)
def test_measurement_that_contradicts_or_fails_is_an_issue(evidence: dict[str, object], cta_present: bool, words: str | None) -> None:
    """No call to action is missed in a text that was not read well, or of an unknown copy."""
    issues = find_text_issues(make_verdict(cta_present=cta_present), Evidence.model_validate(evidence))
    assert [words in issue for issue in issues] == ([True] if words else []) if words else issues == []


def test_folding_keeps_marks_of_other_scripts() -> None:
    assert fold_text("Ｃafé — हिंदी!") == "caféहिंदी"


def is_drawn(character: str) -> bool:
    """As by a font with all characters and without pictographs."""
    return not any(ord(character) in codes for codes in EMOJI)


PIECES = [
    *("a", "é", "1", " ", ".", "´", "한", "\u1112\u1161", "हि", "❤", "☀", "👩", "👍🏽", "🇰🇷", "\u200d🔥"),
    *("\u0301", "\ufe0f", "1\ufe0f\u20e3", "#\u20e3", "\u034f", "\u3164", "\x00"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=4).map("".join))
def test_copy_is_compared_by_what_overlay_draws_of_it(copy: str) -> None:
    """Whatever belongs to an emoji, such as a variation selector, is a character that no model has."""
    assert fold_text(copy) == fold_text(prepare_text(copy, is_drawn).text)


def test_every_emoji_and_symbol_makes_no_difference() -> None:
    """With a variation selector, as a keycap, and with a skin tone; but for signs that NFKC makes characters of words, such as ™."""
    symbols = [chr(code) for code in range(0x2000, 0x1FB00) if unicodedata.category(chr(code)) in ("So", "Sk")]
    plain = [symbol for symbol in symbols if not any(map(str.isalnum, unicodedata.normalize("NFKC", symbol)))]
    sequences = [*plain, *(f"{key}\ufe0f\u20e3" for key in "0123456789#*"), "👨\u200d👩\u200d👧", "🏴\U000e0067\U000e0062\U000e007f"]
    texts = [f"Love it {symbol}{rest} now" for symbol in sequences for rest in ("", "\ufe0f", "\ufe0e", "\U0001f3fd", "\u200d❤\ufe0f")]
    assert len(plain) > 2000
    assert [text for text in texts if fold_text(text) != "loveitnow"] == []
    assert fold_text("It´s 2™ 🏽a🏽") == "its2tma"
