"""Two languages: every text of the pages has its translation, with the same gaps to fill."""

import re
import string
from pathlib import Path

import pytest

from gateway.console import workshop
from gateway.console.words import LANGUAGES, catalogue, language_for, speaker

TEMPLATES = Path(workshop.__file__).parent / "templates"
CONSTANTS = {workshop.UNSERVED, workshop.UNTAKEN, workshop.IDLE}


def texts() -> set[str]:
    pages = "\n".join(page.read_text() for page in TEMPLATES.glob("*.html"))
    return {first or second for first, second in re.findall(r"""\b_\((?:"([^"]*)"|'([^']*)')""", pages)} | CONSTANTS


def gaps(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_every_text_is_translated(language: str) -> None:
    words = catalogue(language)
    assert len(texts()) > 100
    assert sorted(texts() - words.keys()) == []
    assert {text: said for text, said in words.items() if gaps(text) != gaps(said)} == {}


def test_what_has_no_translation_is_said_in_english() -> None:
    assert speaker("ko")("a new step of tomorrow") == "a new step of tomorrow"


def test_words_from_outside_are_never_a_format() -> None:
    """A text that a message brings may have braces; only our own texts are filled."""
    assert speaker("en")("{0.__class__}") == "{0.__class__}"
    assert speaker("en")("{step} is {state}.", step="{x}", state="y") == "{x} is y."


@pytest.mark.parametrize(
    ("cookie", "accepted", "language"),
    [
        (None, "", "en"),
        (None, "ko-KR,ko;q=0.9,en;q=0.8", "ko"),
        (None, "de, en;q=0.5, ko;q=0.7", "ko"),
        (None, "fr", "en"),
        ("en", "ko", "en"),
        ("xx", "ko", "ko"),
        (None, "ko;q=zero, en", "en"),
    ],
)
def test_the_visitor_decides_then_the_browser(cookie: str | None, accepted: str, language: str) -> None:
    assert language_for(cookie, accepted) == language
