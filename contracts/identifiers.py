"""The one rule of ids: of jobs, messages and tenants, and of the names of reply queues. It is checked where an id enters."""

import re
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator

MAX_ID_BYTES = 255
"""Of a property, by AMQP."""
ID_RULE = f"an id is 1 to {MAX_ID_BYTES} bytes of text in UTF-8 without control characters"
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and lone surrogates."""


def is_identifier(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value.encode(errors="surrogatepass")) <= MAX_ID_BYTES and not UNSAFE.search(value)


def check_identifier(value: str) -> str:
    """The id itself. Raises ValueError with the rule."""
    if not is_identifier(value):
        raise ValueError(ID_RULE)
    return value


def quote_id(value: str) -> str:
    """The id as one segment of a path."""
    return quote(value, safe=":@=+~")


Identifier = Annotated[str, AfterValidator(check_identifier)]
