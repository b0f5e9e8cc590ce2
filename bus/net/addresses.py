"""Addresses in messages and settings: their parts, and how they are written into messages and logs."""

import re
from urllib.parse import SplitResult, urlsplit

QUERY_IN_KEY = re.compile(r"\?[^/?]*=.*", re.DOTALL)
"""What looks like a query at the end of a key. It is a part of the key, but somebody may have put a signature there."""


def split_address(uri: str) -> SplitResult:
    """The parts of an address; in a key of `s3://` and `gs://` and in a path of `file://`, `?` and `#` are characters as others."""
    scheme, _, rest = uri.partition("://")
    if scheme not in ("s3", "gs", "file"):
        return urlsplit(uri)
    place, slash, path = rest.partition("/")
    return SplitResult(scheme, place, f"{slash}{path}", "", "")


def redact_uri(uri: str) -> str:
    """An address for messages and logs, without user, query and fragment, which may be secret."""
    try:
        parts = split_address(uri)
    except ValueError:
        return "an invalid address"
    path = parts.path if parts.scheme in ("http", "https") else QUERY_IN_KEY.sub("", parts.path)
    return parts._replace(path=path, query="", fragment="", netloc=parts.netloc.rpartition("@")[2]).geturl()
