"""Masks secrets in text that leaves the process: errors, logs, tracebacks, health reports, the output of commands.

A secret setting is masked by its value, in each form that libraries write it: the types of `bus/secrets.py` call `remember_secret` when the
settings are read. Other secrets are recognised by their form: a password in a URL, an authorization header, a signed query, `token=…`.
"""

import html
import json
import logging
import re
import sys
import traceback
from base64 import b64encode
from collections.abc import Iterator
from functools import lru_cache
from types import TracebackType
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
MAX_TEXT_CHARS = 16_000
"""A longer text is cut before it is masked; its beginning and its end are kept."""
MIN_SECRET_CHARS = 6
"""A shorter value is not masked by itself: it would be found in ordinary words."""
MIN_CUT_CHARS = 16
"""Half of so long a value is masked too: somebody may have cut the text before it got here."""
MAX_REMEMBERED = 500

_WORDS = re.compile(r"[^\W\d_]+(?:[-_.][^\W\d_]+)*")
"""Words, as in a simple password. They are masked only where they stand alone."""
_BEFORE_WORD, _AFTER_WORD = r"(?:(?<![\w-])|(?<=\\[nrt]))", r"(?![\w-])"
_TOKEN_REST = r"[\w.~+/=%-]*"  # noqa: S105 # a pattern
_URL_PASSWORD = re.compile(r"://([^/?#@:\s]*):([^/@\s]*)@")
_WORD = re.compile(r"\S+")
_URL_USER = re.compile(r"(://[^:/@]*:).+")
_BEARER = re.compile(r"\b(bearer|basic)((?:\s|\\[nrt])+)[^\s\"'\\,;]{8,}", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*(?:b(?=[\"']))?[\"']?)[a-z][\w-]*\s+[^\s\"',;]{3,}")
_NAMED_SECRET = re.compile(
    r"(?i)((?:token|secret|password|passwd|api[_-]?key|signature|authorization)[\"']?\s*"
    r"(?:=\s*[\"']?|:\s*[\"']|:\s*(?=[^\s\"',&}]{0,200}\d)))[^\s\"',&}]+"
)
_SIGNED_QUERY = re.compile(
    r"(?i)([?&](?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|sig|key|code)=)[^\s\"'&]+"
)
_MAYBE_SECRET = re.compile(r"[=:]|bearer|basic", re.IGNORECASE)
_PYDANTIC_INPUT = re.compile(r"(input_value=).{0,400}?(, input_type=)", re.DOTALL)
"""The input that pydantic quotes in a validation error, which may be a prompt; it cuts it to some 50 characters."""

_remembered: dict[str, None] = {}


def remember_secret(value: str) -> None:
    """Mask `value` from here on, in all its forms. The oldest of more than MAX_REMEMBERED values is forgotten."""
    if len(value) < MIN_SECRET_CHARS or value in _remembered:
        return
    _remembered[value] = None
    while len(_remembered) > MAX_REMEMBERED:
        del _remembered[next(iter(_remembered))]
    _compiled_forms.cache_clear()


def forget_secrets() -> None:
    """For tests, whose secrets are no secrets of the next test."""
    _remembered.clear()
    _compiled_forms.cache_clear()


def remember_url(url: str) -> None:
    """Mask the password of a URL, and those in its query. One that the URL also says in clear, such as `postgres:postgres@`, is none."""
    for user, password in {*_url_passwords(url)}:
        if password not in re.split(r"\W+", url.replace(f":{password}@", "@", 1)):
            remember_secret(password)
            remember_secret(unquote(password))
            remember_secret(b64encode(f"{unquote(user)}:{unquote(password)}".encode(errors="replace")).decode())
    for _, value in re.findall(r"(?i)[?&](\w*(?:password|token|secret))=([^&\s]+)", url):
        remember_secret(value)
        remember_secret(unquote(value))


def _url_passwords(url: str) -> Iterator[tuple[str, str]]:
    """User and password: of the whole URL, whose password may have a `/` or `@` that should have been %XX; and of each among several."""
    user, _, password = url.partition("://")[2].rpartition("@")[0].partition(":")
    yield user, password
    yield from _URL_PASSWORD.findall(url)


def mask_text(text: str) -> str:
    """The text without secrets, and not much longer than MAX_TEXT_CHARS."""
    return mask_forms(mask_known(cut_text(text)))


def mask_error(error: BaseException) -> str:
    """The text of an error without secrets; its type where it has no text, or one that cannot be read."""
    try:
        return mask_text(str(error)) or type(error).__name__
    except Exception:
        return type(error).__name__


def mask_known(text: str) -> str:
    """The text, of any size, without the values that are remembered."""
    searched, pattern = _compiled_forms()
    return pattern.sub(MASK, text) if any(form in text for form in searched) else text


def mask_forms(text: str) -> str:
    """The text without what has the form of a secret."""
    if not _MAYBE_SECRET.search(text):  # most have none: one search instead of five
        return text
    if "://" in text and "@" in text:
        text = _WORD.sub(_mask_url_passwords, text)
    text = _BEARER.sub(rf"\1\2{MASK}", text)
    text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
    text = _SIGNED_QUERY.sub(rf"\1{MASK}", text)
    return _PYDANTIC_INPUT.sub(rf"\1{MASK}\2", _NAMED_SECRET.sub(rf"\1{MASK}", text))


class MaskingFormatter(logging.Formatter):
    """Of the records of libraries in a command that configures no logging."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record))


def mask_standard_error() -> None:
    """Mask what Python writes by itself: the traceback of the error that ends the process, and log records that no handler takes."""
    sys.excepthook = show_uncaught
    if logging.lastResort:
        logging.lastResort.setFormatter(MaskingFormatter())


def show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback of the error that ends a process, without secrets."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(mask_text("".join(traceback.format_exception(kind, error, trace))).rstrip() + "\n")


def cut_text(text: str) -> str:
    """At most MAX_TEXT_CHARS. The words at the cut are left out whole: half a secret is not recognised as one."""
    if len(text) <= MAX_TEXT_CHARS:
        return text
    half = MAX_TEXT_CHARS // 2
    heads, tails = text[:half].rsplit(None, 1), text[-half:].split(None, 1)
    head, tail = heads[0] if len(heads) == 2 else "", tails[1] if len(tails) == 2 else ""
    return f"{head} … ({len(text) - len(head) - len(tail)} characters are left out) … {tail}"


@lru_cache(1)
def _compiled_forms() -> tuple[tuple[str, ...], re.Pattern[str]]:
    """What a text with a remembered value contains, and the pattern that replaces the value. The longest form is tried first."""
    found: list[tuple[str, str]] = []
    for form in sorted({form for value in _remembered for form in _forms(value)}, key=len, reverse=True):
        if _WORDS.fullmatch(form) or len(form) < 8:
            found.append((form, _BEFORE_WORD + re.escape(form) + _AFTER_WORD))
        elif len(form) < MIN_CUT_CHARS:
            found.append((form, re.escape(form)))
        else:
            half = form[: max(10, len(form) // 2)]
            found.append((half, f"{re.escape(form)}|{re.escape(half)}{_TOKEN_REST}"))
    return tuple({form: None for form, _ in found}), re.compile("|".join(pattern for _, pattern in found) or r"(?!)")


def _forms(value: str) -> Iterator[str]:
    """How a value is written into headers, URLs, JSON, HTML, and Python's repr of text and bytes."""
    data = value.encode(errors="surrogateescape")
    for form in (value, repr(value)[1:-1], repr(data)[2:-1]):
        yield form
        yield json.dumps(form)[1:-1]
        yield json.dumps(form, ensure_ascii=False)[1:-1]
    yield html.escape(value)
    yield quote(data, safe="")
    yield quote(data)
    yield quote_plus(data)


def _mask_url_passwords(word: re.Match[str]) -> str:
    """A word without blanks. What precedes an `@` is searched for `://user:`; nothing is searched twice."""
    *before, last = word[0].split("@")
    return "@".join([*(_URL_USER.sub(rf"\1{MASK}", part, count=1) for part in before), last])
