"""The table of invisible characters beside the properties of Unicode in the package `regex`, whose version is newer than Python's."""

import sys
import unicodedata

import regex

from contracts.invisible_characters import invisible_characters, remove_invisible

ALL_CHARACTERS = "".join(map(chr, range(sys.maxunicode + 1)))


def test_default_ignorable_and_format_characters_are_invisible_and_controls_that_are_no_white_space() -> None:
    expected = regex.findall(r"[\p{Default_Ignorable_Code_Point}\p{Cf}]", ALL_CHARACTERS)
    controls = [character for character in ALL_CHARACTERS if unicodedata.category(character) == "Cc" and not character.isspace()]
    assert set(map(chr, invisible_characters())) == {*expected, *controls}


def test_letters_white_space_and_marks_stay() -> None:
    text = "a é \t\n도박 हिंदी \u1103\u1169 賭博 ❤ \u0301"
    assert remove_invisible(text) == text
    assert remove_invisible("❤\ufe0f a\u200db\u3164\x00") == "❤ ab"
