"""The console's words: English in the pages, and a catalogue from English for each other language."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

CATALOGUE_FOLDER = Path(__file__).parent / "catalogues"
LANGUAGES = {"en": "English", "ko": "한국어"}

Translate = Callable[..., str]
"""Takes an English text with `{names}`, and what fills them."""


@cache
def load_catalogue(language: str) -> Mapping[str, str]:
    """English is its own catalogue. Raises FileNotFoundError for a language that there is none of."""
    if language == "en":
        return {}
    words: dict[str, str] = json.loads((CATALOGUE_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return words


def translator(language: str) -> Translate:
    """A text without a translation is said in English."""
    words = load_catalogue(language)

    def say(text: str, **filling: object) -> str:
        said = words.get(text, text)
        return said.format(**filling) if filling else said

    return say


def negotiate_language(cookie: str | None, accept_language: str) -> str:
    """What the visitor chose, else the first known language that the browser asks for, else English."""
    if cookie in LANGUAGES:
        return cookie
    ranked = sorted((part.strip() for part in accept_language.split(",")), key=_quality, reverse=True)
    wanted = (part.partition(";")[0].strip().partition("-")[0].lower() for part in ranked)
    return next((language for language in wanted if language in LANGUAGES), "en")


def _quality(part: str) -> float:
    try:
        return float(part.partition(";q=")[2] or 1)
    except ValueError:
        return 0.0
