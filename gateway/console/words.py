"""The console's words: English in the pages, and a catalogue from English for each other language."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "catalogues"
LANGUAGES = {"en": "English", "ko": "한국어"}

Say = Callable[..., str]
"""Takes an English text with `{names}`, and what fills them."""


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """English is its own catalogue. Raises FileNotFoundError for a language that there is none of."""
    if language == "en":
        return {}
    words: dict[str, str] = json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return words


def speaker(language: str) -> Say:
    """A text without a translation is said in English."""
    words = catalogue(language)

    def say(text: str, **filling: object) -> str:
        said = words.get(text, text)
        return said.format(**filling) if filling else said

    return say


def language_for(cookie: str | None, accepted: str) -> str:
    """What the visitor chose, else the first known language that the browser asks for, else English."""
    if cookie in LANGUAGES:
        return cookie
    ranked = sorted((part.strip() for part in accepted.split(",")), key=_weight, reverse=True)
    wanted = (part.partition(";")[0].strip().partition("-")[0].lower() for part in ranked)
    return next((language for language in wanted if language in LANGUAGES), "en")


def _weight(part: str) -> float:
    try:
        return float(part.partition(";q=")[2] or 1)
    except ValueError:
        return 0.0
