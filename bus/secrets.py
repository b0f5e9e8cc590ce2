"""The types of secret settings. Each removes the white space around a value, refuses an unusable one, and has it masked in all texts.

A secret often ends with a line feed, as `kubectl create secret --from-file` and `echo … |` leave it, or begins with a byte order mark.
The message of a refusal names the cure and never the value; the setting's name is added by `ops/errors.py`.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr

from bus.masking import remember_secret, remember_url

BLANKS = " \t\r\n\v\f\u00a0\u2028\u2029\u200b\ufeff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_IN_HEADER = re.compile(r"[^\x21-\x7e]")
QUOTES = ("'", '"')
SECRET_PREFIX = "whsec_"  # noqa: S105 # of every secret of webhooks, no secret
VERSION_PREFIX = "v1,"
"""Some services print a secret of webhooks after the version of the signature."""


def strip_blanks(value: Any) -> Any:
    """Text without the white space around it; another value as it is. Raises ValueError for white space alone."""
    if not isinstance(value, str) or not value:
        return value
    if not (text := value.strip(BLANKS)):
        raise ValueError("it is white space only: unset it, or set a value")
    return text


def check_plain(text: str) -> None:
    if _CONTROL.search(text):
        raise ValueError("it has a line break or another control character inside: it is one line, without white space around it")


def check_header(text: str) -> None:
    """Raises ValueError for a value that cannot be sent in an HTTP header, or is not meant to be sent as it stands."""
    check_plain(text)
    word, blank, _ = text.partition(" ")
    if blank and word.lower() in ("bearer", "basic", "token", "authorization:"):
        raise ValueError(f"it begins with the word {word}: set the token alone, the word is added")
    check_unquoted(text)
    if _NOT_IN_HEADER.search(text):
        raise ValueError("it has a blank or a character that cannot stand in an HTTP header: a token has only printable ASCII characters")


def check_unquoted(text: str) -> None:
    if len(text) > 1 and text[0] in QUOTES and text[-1] == text[0]:
        raise ValueError("it has quotation marks around it, which are part of the value here: remove them")


def check_url(text: str) -> None:
    check_plain(text)
    check_unquoted(text)
    if "://" not in text:
        raise ValueError("it is not a URL: it has no `://`")


def check_amqp_url(text: str) -> None:
    """Raises ValueError where a part of the password would be read as the port."""
    check_url(text)
    try:
        urlsplit(text).port  # noqa: B018 # reading it checks it
    except ValueError:
        raise ValueError("its host or port cannot be read: write special characters of the password as %XX, such as %2F for /") from None


def secret_reader(check: Callable[[str], None], remember: Callable[[str], None]) -> Callable[[Any], Any]:
    """A validator that strips, remembers and checks a value. What is refused is remembered too, since errors may quote it."""

    def read(value: Any) -> Any:
        text = strip_blanks(value.get_secret_value() if isinstance(value, SecretStr) else value)
        if isinstance(text, str) and text:
            remember(text)
            check(text)
        return text

    return read


def remember_keys(text: str) -> None:
    """The keys of `name:key` pairs."""
    for pair in text.replace(",", " ").split():
        remember_secret(pair.partition(":")[2])


def remember_words(text: str) -> None:
    """Several secrets, separated by white space; what follows the prefixes is secret."""
    for word in text.split():
        remember_secret(word.removeprefix(VERSION_PREFIX).removeprefix(SECRET_PREFIX))


Secret = Annotated[SecretStr, BeforeValidator(secret_reader(check_plain, remember_secret))]
"""A password or a key that is used as it is, or to sign."""
HeaderSecret = Annotated[SecretStr, BeforeValidator(secret_reader(check_header, remember_secret))]
"""A token that is sent in an HTTP header."""
SecretUrl = Annotated[SecretStr, BeforeValidator(secret_reader(check_url, remember_url))]
AmqpUrl = Annotated[SecretStr, BeforeValidator(secret_reader(check_amqp_url, remember_url))]
"""URLs that may have a password."""
ServerUrl = Annotated[str, BeforeValidator(secret_reader(check_plain, remember_url))]
"""The address of a server, in which some write a token or a password."""
KeyList = Annotated[SecretStr, BeforeValidator(secret_reader(lambda _: None, remember_keys))]
"""`name:key` pairs; whoever reads them checks each."""
SecretWords = Annotated[SecretStr, BeforeValidator(secret_reader(lambda _: None, remember_words))]
"""Several secrets, separated by white space; whoever reads them checks each."""
StrippedText = Annotated[str, BeforeValidator(strip_blanks)]
HeaderWord = Annotated[str, BeforeValidator(secret_reader(check_header, lambda _: None))]
"""No secrets: a user's name, and what is sent in a header, such as the id of a key."""
