"""Translations: every text of the pages is in each catalogue, with the same placeholders."""

import re
import string
from pathlib import Path

import pytest

from gateway.console import source_pictures, workers
from gateway.console.i18n import LANGUAGES, load_catalogue, negotiate_language, translator

TEMPLATES = Path(workers.__file__).parent / "templates"
WARNINGS = {
    workers.NO_WORKER,
    workers.NO_CONSUMER,
    workers.DEAD_LETTERS_NOT_INGESTED,
    workers.STEP_NOT_CONSUMING,
    workers.HEALTH_CHECK_FAILED,
}


PICTURE_PROBLEMS = {
    source_pictures.UNREADABLE,
    source_pictures.TOO_LARGE,
    source_pictures.JOB_PICTURE_TOO_LARGE,
    source_pictures.UNKNOWN,
    source_pictures.SOURCE_MISSING,
    source_pictures.CONTROL_MISSING,
    source_pictures.TWO_PICTURES,
}


def translated_texts() -> set[str]:
    pages = "\n".join(page.read_text() for page in TEMPLATES.glob("*.html"))
    return {first or second for first, second in re.findall(r"""\b_\((?:"([^"]*)"|'([^']*)')""", pages)} | WARNINGS | PICTURE_PROBLEMS


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_every_text_is_translated(language: str) -> None:
    catalogue = load_catalogue(language)
    assert len(translated_texts()) > 100
    assert sorted(translated_texts() - catalogue.keys()) == []
    assert {text: other for text, other in catalogue.items() if placeholders(text) != placeholders(other)} == {}


def test_missing_translation_falls_back_to_english() -> None:
    assert translator("ko")("an unknown step") == "an unknown step"


def test_external_text_is_never_a_format_string() -> None:
    """Text from a message may contain braces; only the texts of the pages have placeholders."""
    assert translator("en")("{0.__class__}") == "{0.__class__}"
    assert translator("en")("{step} is {state}.", step="{x}", state="y") == "{x} is y."


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
def test_language_cookie_overrides_accept_language(cookie: str | None, accepted: str, language: str) -> None:
    assert negotiate_language(cookie, accepted) == language
