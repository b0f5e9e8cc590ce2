"""What travels along with every message that one HTTP request sends: its id and its trace.

Set at the door, read where letters are written.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_TRAVELLING: ContextVar[Mapping[str, str]] = ContextVar("travelling", default={})  # noqa: B039 - it is never changed in place


def travelling() -> dict[str, str]:
    """Headers for a letter, by their names on the wire."""
    return dict(_TRAVELLING.get())


@contextmanager
def travel_with(headers: Mapping[str, str]) -> Iterator[None]:
    token = _TRAVELLING.set(headers)
    try:
        yield
    finally:
        _TRAVELLING.reset(token)
