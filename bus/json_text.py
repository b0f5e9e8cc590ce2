"""JSON from outside, whose texts need not be texts: a client may cut a character between its two halves, or send NUL.

UTF-8 cannot express the half of a character, and PostgreSQL cannot store NUL. Both become U+FFFD, the replacement character, wherever JSON
enters: the bodies of HTTP requests, commands and orders. A byte order mark, which some writers put before JSON, is left out there.
"""

import codecs
import re

REPLACEMENT = "\ufffd"
SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
ESCAPES = re.compile(
    rb"(?<!\\)((?:\\\\)*)(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2}))"
)
"""Escaped backslashes, and then the two halves of a character, or an escape that is to be replaced."""


def storable_json(body: bytes) -> bytes:
    """The JSON with the escapes of NUL and of half a character replaced, and without one byte order mark at its start.

    Linear in its size; other bytes stay as they are.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    return ESCAPES.sub(_replace_escape, body) if SUSPECT.search(body) else body


def _replace_escape(match: re.Match[bytes]) -> bytes:
    return match[1] + (rb"\ufffd" if len(match[2]) == len(rb"\u0000") else match[2])


def storable_text(text: str) -> str:
    """The same for a text that is no JSON, such as a field of a form."""
    return text.replace("\0", REPLACEMENT).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
