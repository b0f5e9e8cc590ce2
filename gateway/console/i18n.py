"""Translation of the pages: templates are in English; each other language has a catalogue keyed by the English text."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

CATALOGUE_FOLDER = Path(__file__).parent / "catalogues"
LANGUAGES = {"en": "English", "ko": "한국어"}

Translate = Callable[..., str]
"""(English text, **values of its `{placeholders}`) -> translated text."""


@cache
def load_catalogue(language: str) -> Mapping[str, str]:
    """Translations by English text; none for English. Raises FileNotFoundError for an unknown language."""
    if language == "en":
        return {}
    catalogue: dict[str, str] = json.loads((CATALOGUE_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return catalogue


def translator(language: str) -> Translate:
    """The translation function of a language. A text without a translation stays English."""
    catalogue = load_catalogue(language)

    def translate(text: str, **values: object) -> str:
        translated = catalogue.get(text, text)
        return translated.format(**values) if values else translated

    return translate


def negotiate_language(cookie: str | None, accept_language: str) -> str:
    """The language of the cookie, else the first supported one of Accept-Language, else English."""
    if cookie in LANGUAGES:
        return cookie
    ranked = sorted((part.strip() for part in accept_language.split(",")), key=_quality, reverse=True)
    accepted = (part.partition(";")[0].strip().partition("-")[0].lower() for part in ranked)
    return next((language for language in accepted if language in LANGUAGES), "en")


def _quality(part: str) -> float:
    try:
        return float(part.partition(";q=")[2] or 1)
    except ValueError:
        return 0.0
