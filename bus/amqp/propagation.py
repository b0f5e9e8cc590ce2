"""Headers of one HTTP request, its id and trace context, that every message published during the request carries.

The gateway sets them; the message builders read them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_PROPAGATED_HEADERS: ContextVar[Mapping[str, str]] = ContextVar("propagated_headers", default={})  # noqa: B039 - never changed in place


def propagated_headers() -> dict[str, str]:
    """The headers by their names on the wire; empty outside a request."""
    return dict(_PROPAGATED_HEADERS.get())


@contextmanager
def propagate_headers(headers: Mapping[str, str]) -> Iterator[None]:
    token = _PROPAGATED_HEADERS.set(headers)
    try:
        yield
    finally:
        _PROPAGATED_HEADERS.reset(token)
