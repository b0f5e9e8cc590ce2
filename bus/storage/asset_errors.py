"""The errors of a fetched asset: what each code means, and messages without secrets of the address."""

from bus.errors import PermanentError, TemporaryError
from bus.net.addresses import redact_uri

REFUSED, FORBIDDEN, MISSING, TOO_LARGE = "asset-refused", "asset-forbidden", "asset-missing", "asset-too-large"
"""Refused: by our settings, or with a response that is no file. Forbidden: by the server, which may also say it of a missing file."""


def check_size(size: int, uri: str, max_bytes: int) -> None:
    """Raises PermanentError("asset-too-large")."""
    if size > max_bytes:
        raise too_large_error(uri, max_bytes)


def too_large_error(uri: str, max_bytes: int) -> PermanentError:
    return PermanentError(TOO_LARGE, f"{redact_uri(uri)} is larger than the {max_bytes} bytes allowed.")


def missing_error(uri: str) -> PermanentError:
    return PermanentError(MISSING, f"There is no asset at {redact_uri(uri)}.")


def forbidden_error(uri: str, reason: str) -> PermanentError:
    """A server that does not let its files be listed says "forbidden" of a missing one too; the answer does not show which."""
    return PermanentError(FORBIDDEN, f"{redact_uri(uri)} is not readable, or does not exist: {reason}.")


def refused_error(uri: str, reason: str) -> PermanentError:
    return PermanentError(REFUSED, f"{redact_uri(uri)} is not fetched: {reason}.")


def unreachable_error(text: str) -> TemporaryError:
    return TemporaryError(text, code="asset-unreachable")
