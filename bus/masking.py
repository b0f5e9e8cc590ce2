"""Masks secrets in text that leaves the process: errors, logs, tracebacks, health reports, the output of commands.

A secret setting is masked by its value, however a library escapes its characters: the types of `bus/secrets.py` call `remember_secret` when
the settings are read. Other secrets are recognised by their form: a password in a URL, an authorization header, a signed query, `token=…`.
"""

import json
import logging
import re
import sys
import threading
import traceback
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import unquote

MASK = "***"
MAX_TEXT_CHARS = 16_000
"""A longer text is cut before it is masked; its beginning and its end are kept."""
MIN_SECRET_CHARS = 6
"""A shorter value is not masked by itself: it would be found in ordinary words."""
MIN_CUT_CHARS = 16
"""Half of so long a value is masked too: somebody may have cut the text before it got here."""
MAX_LEARNED = 2000
"""Of the values that are learned while the process runs, so many are masked; those of the settings always are."""
MAX_ESCAPED_CHARS = 250
"""Of the beginning of a longer value, such as a key in PEM, every escape is known; of its rest those of Python and JSON."""

_WORDS = re.compile(r"[^\W\d_]+(?:[-_.][^\W\d_]+)*")
"""Words, as in a simple password. They are masked only where they stand alone."""
_BEFORE_WORD, _AFTER_WORD = r"(?:(?<![\w-])|(?<=\\[nrt]))", r"(?![\w-])"
_TOKEN_REST = r"(?:[\w.~+/=%-]|\\{1,16}(?:[^\w\s\\\"']|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2})|&(?:amp;){0,3}#?\w{1,8};)*"  # noqa: S105 # a pattern
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9]+")
_CHARACTER = re.compile(r"\\+|.", re.DOTALL)
"""Of a secret; several backslashes are one, since it depends on the writer how many there are."""
_CONTROL_NAMES = {"\n": "n", "\r": "r", "\t": "t"}
_HTML_NAMES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
_URL_PASSWORD = re.compile(r"://([^/?#@:\s]*):([^/@\s]*)@")
_WORD = re.compile(r"\S+")
_URL_USER = re.compile(r"(://[^:/@]*:).+")
_HTTP_USER = re.compile(r"(?i)(\bhttps?://)([^/?#@:\s]{8,})@")
"""A user without a password at an HTTP server may be a token: `https://token@host`."""
_OTHER_USER = re.compile(r"(://)(?=[^/?#@:\s]{0,200}\d)(?=[^/?#@:\s]{0,200}[A-Za-z])[^/?#@:\s]{16,}@")
"""One of 16 characters with a digit, anywhere else. Simple users, as in `postgres://user@`, stay visible."""
_BEARER = re.compile(r"\b(bearer|basic)((?:\s|\\[nrt])+)[^\s\"'\\,;]{8,}", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*(?:b(?=[\"']))?[\"']?)[a-z][\w-]*\s+[^\s\"',;]{3,}")
_NAMED_SECRET = re.compile(
    r"(?i)((?:token|secret|password|passwd|api[_-]?key|signature|authorization)[\"']?\s*"
    r"(?:=\s*[\"']?|:\s*[\"']|:\s*(?=[^\s\"',&}]{7})(?=[^\s\"',&}]{0,200}\d)(?=[^\s\"',&}]{0,200}[a-z])))[^\s\"',&}]+"
)
"""A word after `token: ` is a secret only with a letter and a digit: it may be a sentence, such as `Unknown token: 128001`."""
_SIGNED_QUERY = re.compile(
    r"(?i)([?&](?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|sig|key|code)=)[^\s\"'&]+"
)
_MAYBE_SECRET = re.compile(r"[=:]|bearer|basic", re.IGNORECASE)
_PYDANTIC_INPUT = re.compile(r"(input_value=).{0,400}?(, input_type=)", re.DOTALL)
"""The input that pydantic quotes in a validation error, which may be a prompt; it cuts it to some 50 characters."""

_settings: dict[str, None] = {}
_learned: dict[str, None] = {}


def remember_secret(value: str) -> None:
    """Mask the value of a setting from here on, however its characters are escaped."""
    if len(value) >= MIN_SECRET_CHARS and value not in _settings:
        _settings[value] = None
        _known.cache_clear()


def remember_token(value: str) -> None:
    """The same for a value that comes and goes while the process runs. The oldest of more than MAX_LEARNED is forgotten."""
    if len(value) >= MIN_SECRET_CHARS and value not in _learned:
        _learned[value] = None
        while len(_learned) > MAX_LEARNED:
            del _learned[next(iter(_learned))]
        _known.cache_clear()


def forget_secrets() -> None:
    """For tests, whose secrets are no secrets of the next test."""
    _settings.clear()
    _learned.clear()
    _known.cache_clear()


def remember_url(url: str) -> None:
    """Mask the password of a URL, those in its query, and a token in place of the user.

    A password that the URL also says in clear, such as `postgres:postgres@`, is none.
    """
    for user, password in {*_url_passwords(url)}:
        if password not in re.split(r"\W+", url.replace(f":{password}@", "@", 1)):
            remember_secret(password)
            remember_secret(unquote(password))
            remember_secret(b64encode(f"{unquote(user)}:{unquote(password)}".encode(errors="replace")).decode())
    for _, token in _HTTP_USER.findall(url):
        remember_secret(token)
        remember_secret(unquote(token))
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
    for part, value in _known():
        if part in text:
            text = _value_pattern(value).sub(MASK, text)
    return text


def mask_forms(text: str) -> str:
    """The text without what has the form of a secret."""
    if not _MAYBE_SECRET.search(text):  # most have none: one search instead of five
        return text
    if "://" in text and "@" in text:
        text = _WORD.sub(_mask_url_passwords, text)
        text = _OTHER_USER.sub(rf"\1{MASK}@", _HTTP_USER.sub(rf"\1{MASK}@", text))
    text = _BEARER.sub(rf"\1\2{MASK}", text)
    text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
    text = _SIGNED_QUERY.sub(rf"\1{MASK}", text)
    return _PYDANTIC_INPUT.sub(rf"\1{MASK}\2", _NAMED_SECRET.sub(rf"\1{MASK}", text))


class MaskingFormatter(logging.Formatter):
    """Of the records of libraries in a command that configures no logging."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record))


class MaskingStream:
    """Standard error, without the known secrets: also of warnings, of logging's own errors, and of processes that are forked."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(mask_known(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mask_standard_error() -> None:
    """Mask what Python and libraries write there by themselves, such as the traceback of the error that ends the process or a thread."""
    if sys.stderr and not isinstance(sys.stderr, MaskingStream):
        sys.stderr = MaskingStream(sys.stderr)
    sys.excepthook = show_uncaught
    threading.excepthook = show_uncaught_of_thread
    sys.unraisablehook = show_unraisable
    if logging.lastResort:
        logging.lastResort.setFormatter(MaskingFormatter())


def show_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, where: str = "") -> None:
    """The traceback of an error that nobody catches, without secrets. `where`: a line before it."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), trace)
    elif sys.stderr:
        sys.stderr.write(mask_text(where + "".join(traceback.format_exception(kind, error, trace))).rstrip() + "\n")


def show_uncaught_of_thread(uncaught: threading.ExceptHookArgs) -> None:
    if not issubclass(uncaught.exc_type, SystemExit):
        where = f"Exception in thread {uncaught.thread.name if uncaught.thread else '?'}:\n"
        show_uncaught(uncaught.exc_type, uncaught.exc_value, uncaught.exc_traceback, where)


def show_unraisable(error: "sys.UnraisableHookArgs") -> None:
    """Of a destructor or a callback. The object is not kept, nor is its text trusted to be readable."""
    where = f"{error.err_msg or 'Exception ignored in'}: {getattr(error.object, '__qualname__', type(error.object).__name__)}\n"
    show_uncaught(error.exc_type, error.exc_value, error.exc_traceback, where)


def cut_text(text: str) -> str:
    """At most MAX_TEXT_CHARS. The words at the cut are left out whole: half a secret is not recognised as one."""
    if len(text) <= MAX_TEXT_CHARS:
        return text
    half = MAX_TEXT_CHARS // 2
    heads, tails = text[:half].rsplit(None, 1), text[-half:].split(None, 1)
    head, tail = heads[0] if len(heads) == 2 else "", tails[1] if len(tails) == 2 else ""
    return f"{head} … ({len(text) - len(head) - len(tail)} characters are left out) … {tail}"


@lru_cache(1)
def _known() -> tuple[tuple[str, str], ...]:
    """The remembered values, the longest first, each after what every text with it contains: letters and digits are never escaped."""
    return tuple((_searched_part(value), value) for value in sorted({**_settings, **_learned}, key=len, reverse=True))


def _searched_part(value: str) -> str:
    return max(_ALPHANUMERIC.findall(value[: _kept_chars(value)]), key=len, default="")


def _kept_chars(value: str) -> int:
    """How much of a value that was cut is enough to recognise it."""
    return min(max(10, len(value) // 2), MAX_ESCAPED_CHARS) if len(value) >= MIN_CUT_CHARS else len(value)


@lru_cache(MAX_LEARNED)
def _value_pattern(value: str) -> re.Pattern[str]:
    """What is replaced where a value is found. It is built only for a text that may contain the value."""
    if _WORDS.fullmatch(value) or len(value) < 8:
        return re.compile(_BEFORE_WORD + _escaped_pattern(value) + _AFTER_WORD)
    pattern, end = _escaped_pattern(value[: _kept_chars(value)]), value[_kept_chars(value) :]
    if end:
        forms = [_escaped_pattern(end)] if len(end) <= MAX_ESCAPED_CHARS else map(re.escape, (end, repr(end)[1:-1], json.dumps(end)[1:-1]))
        pattern += f"(?:{'|'.join(forms)}|{_TOKEN_REST})"
    return re.compile(pattern)


def _escaped_pattern(value: str) -> str:
    return "".join(_character_pattern(character) for character in _CHARACTER.findall(value))


@lru_cache(256)
def _character_pattern(character: str) -> str:
    """A character as it is, and as JSON, Python, JavaScript, HTML and URLs escape it, several times over: `/` as `\\/`, `%2f`, `&#x2F;`.

    `character`: one, or several backslashes. What is repeated is bounded, so that the time stays linear.
    """
    if character.isascii() and character.isalnum():
        return character
    code, data = ord(character[0]), character[0].encode(errors="surrogateescape" if "\udc80" <= character <= "\udcff" else "replace")
    escaped = r"\\{1,16}"
    forms = [
        rf"{escaped}[ux]\{{?0{{0,6}}{code:x}\}}?",
        "".join(f"%(?:25){{0,3}}{byte:02x}" for byte in data),
        rf"&(?:amp;){{0,3}}#(?:x0{{0,4}}{code:x}|0{{0,4}}{code});",
    ]
    if len(data) > 1:
        forms.append("".join(rf"{escaped}x{byte:02x}" for byte in data))
    if code > 0xFFFF:
        pair = character.encode("utf-16-be").hex()
        forms.append(rf"{escaped}u{pair[:4]}{escaped}u{pair[4:]}")
    if name := _CONTROL_NAMES.get(character):
        forms.append(escaped + name)
    if name := _HTML_NAMES.get(character):
        forms.append(f"&(?:amp;){{0,3}}{name};")
    if character == " ":
        forms.append(r"\+")
    plain = escaped if character[0] == "\\" else rf"\\{{0,16}}{re.escape(character)}"
    return f"(?:(?i:{'|'.join(forms)})|{plain})"


def _mask_url_passwords(word: re.Match[str]) -> str:
    """A word without blanks. What precedes an `@` is searched for `://user:`; nothing is searched twice."""
    *before, last = word[0].split("@")
    return "@".join([*(_URL_USER.sub(rf"\1{MASK}", part, count=1) for part in before), last])
