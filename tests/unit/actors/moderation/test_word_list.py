"""The word list: what counts as the same word, where a word begins and ends, and the errors of a file."""

import time
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from actors.moderation.word_list import MAX_FILE_BYTES, normalize, parse_word_list, read_word_list
from contracts.invisible_characters import invisible_characters
from contracts.moderate import MAX_TEXT_CHARS

WORDS = """
# of a test
[violence]
kill yourself
bomb*   # any ending
[illicit]
도박
賭博
[illicit]
café
การพนัน
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nothing of it", []),
        ("", []),
        ("Kill YOURSELF", ["violence"]),
        ("kill\n\t yourself!", ["violence"]),
        ("kill, yourself", []),
        ("skill yourself", []),
        ("kill yourselfie", []),
        ("(kill yourself)", ["violence"]),
        ("two BOMBERS", ["violence"]),
        ("a carbomb", []),
        ("ｂｏｍｂ", ["violence"]),
        ("bo\u200bmb", ["violence"]),
        ("b\u00adomb", ["violence"]),
        ("CAFÉ", ["illicit"]),
        ("CAFE\u0301", ["illicit"]),
        ("cafe", []),
        ("도박", ["illicit"]),
        ("도박은 나쁘다", ["illicit"]),
        ("도박에서", ["illicit"]),
        ("도박입니다.", ["illicit"]),
        ("\u1103\u1169\u1107\u1161\u11a8은", ["illicit"]),
        ("도박장", []),
        ("온라인도박", []),
        ("我愛賭博。", ["illicit"]),
        ("เล่นการพนันออนไลน์", ["illicit"]),
        ("도박, bomb", ["illicit", "violence"]),
        ("b0mb", []),
    ],
)
def test_word_is_found_where_it_stands_alone(text: str, found: list[str]) -> None:
    words = parse_word_list(WORDS)
    assert words.find(text) == found
    assert words.categories == ["illicit", "violence"]


@pytest.mark.parametrize("word", ["bomb", "도박", "café", "kill yourself", "賭博", "การพนัน"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_no_invisible_character_at_any_place_hides_a_word(word: str, form: Literal["NFC", "NFD"]) -> None:
    """Also between a character and its mark, and between the parts of a Korean syllable."""
    words, written = parse_word_list(WORDS), unicodedata.normalize(form, word)
    invisible = [chr(code) for code in sorted(invisible_characters())]
    hidden = [written[:place] + character + written[place:] for place in range(len(written) + 1) for character in invisible[::100]]
    hidden += [written[:1] + character + written[1:] for character in invisible]
    assert [text for text in hidden if not words.find(text)] == []


def test_normalized_text_has_nothing_invisible_and_stays_as_it_is() -> None:
    """A character whose compatible form is invisible would be left over."""
    characters = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE1000))]
    normal = {character: normalize(f"a{character}b") for character in characters}
    assert [character for character, text in normal.items() if any(map(invisible_characters().__contains__, map(ord, text)))] == []
    assert [character for character, text in normal.items() if normalize(text) != text] == []


def test_word_of_two_categories_is_found_in_both_and_each_has_its_own_ending() -> None:
    words = parse_word_list("[hate]\nvermin\n[harassment]\nvermin*")
    assert words.find("vermin") == ["harassment", "hate"]
    assert words.find("verminous") == ["harassment"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bomb", r"line 1: a \[category\] comes before"),
        ("[a category]\nbomb", r"line 1: a category is \[name\]"),
        ("[x]\n\u200b", "line 2: a word or phrase has 1 to 64"),
        ("[x]\n*", "line 2"),
        (f"[x]\n\n{'a' * 65}", "line 3"),
        ("[x]\n# nothing", "it has no word"),
        ("", "it has no word"),
    ],
)
def test_error_names_file_and_line(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text(text, encoding="utf-8-sig")
    with pytest.raises(ValueError, match=problem) as caught:
        read_word_list(file)
    assert str(file) in str(caught.value)


def test_file_of_another_encoding_or_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes("[x]\n도박".encode("euc-kr"))
    with pytest.raises(ValueError, match="utf-8"):
        read_word_list(file)
    with file.open("wb") as large:
        large.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="at most"):
        read_word_list(file)


def test_marks_beyond_thirty_in_a_row_are_dropped() -> None:
    assert normalize("a" + "\u0315\u0300" * 400) == normalize("a" + "\u0315\u0300" * 15)


@pytest.mark.parametrize("unit", ["a", "! ", "賭", "\ufdfa", "\u0301", "도박장 ", "aa"])
def test_time_is_linear_in_the_length(unit: str) -> None:
    """The words are as long as they may be, and the text has their beginnings everywhere."""
    words = parse_word_list("[x]\n" + "\n".join(unit * length + "z" for unit in "a!賭도" for length in range(1, 64, 7)))
    whole = unit * (MAX_TEXT_CHARS // len(unit))

    def seconds(text: str) -> float:
        started = time.process_time()
        words.find(text)
        return time.process_time() - started

    words.find(whole)
    quarter = min(seconds(whole[: len(whole) // 4]) for _ in range(2))
    assert min(seconds(whole) for _ in range(2)) < 10 * quarter + 0.05
