"""What travels along with every message that one HTTP request sends: its id and its trace.

Set at the door, read where letters are written.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_PROPAGATED_HEADERS: ContextVar[Mapping[str, str]] = ContextVar("travelling", default={})  # noqa: B039 - it is never changed in place


def propagated_headers() -> dict[str, str]:
    """Headers for a letter, by their names on the wire."""
    return dict(_PROPAGATED_HEADERS.get())


@contextmanager
def propagate_headers(headers: Mapping[str, str]) -> Iterator[None]:
    token = _PROPAGATED_HEADERS.set(headers)
    try:
        yield
    finally:
        _PROPAGATED_HEADERS.reset(token)
