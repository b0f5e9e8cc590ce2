"""A text of the greatest length is laid out in bounded time, and as large as the picture allows."""

import time
from dataclasses import replace

import pytest

from actors.imaging.fonts import CodePoints, load_fonts
from actors.imaging.text_layout import fit_text, lay_out, measure_width

PICTURE = (1000, 1000)
MAX_WIDTH, MAX_HEIGHT = 840, 340
LONG_TEXTS = {
    "one word": "W" * 500,
    "Chinese": "漢" * 500,
    "both directions": "a김ع" * 166,
    "three fonts": "aक漢" * 166,
    "words": "word " * 100,
}


@pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=LONG_TEXTS)
def test_long_text_is_laid_out_within_seconds_in_the_largest_size_that_fits(text: str) -> None:
    fonts = load_fonts()
    started = time.process_time()
    block = fit_text(text, fonts, PICTURE, "large")
    assert time.process_time() - started < 4
    assert block.width <= MAX_WIDTH
    assert block.height <= MAX_HEIGHT
    assert "".join(block.lines).replace(" ", "") == text.replace(" ", "")
    larger = lay_out(text, fonts, block.font_size + 1, MAX_WIDTH)
    assert larger.width > MAX_WIDTH or larger.height > MAX_HEIGHT


def test_line_of_a_broken_word_has_no_place_for_another_letter() -> None:
    fonts = load_fonts()
    block = fit_text("W" * 500, fonts, PICTURE, "large")
    assert {measure_width(line + "W", fonts, block.font_size) > MAX_WIDTH for line in block.lines[:-1]} == {True}


def test_short_text_has_the_size_of_its_category() -> None:
    assert [fit_text("Sale", load_fonts(), PICTURE, category).font_size for category in ("small", "medium", "large")] == [50, 75, 96]


def test_a_font_is_looked_up_by_its_path_alone() -> None:
    """Its thousands of ranges are not hashed for each run of a text."""
    face = load_fonts()[0]
    other = replace(face, code_points=CodePoints((), ()))
    assert (other, hash(other)) == (face, hash(face))
