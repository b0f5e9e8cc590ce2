"""Messaging, persistence and storage. The only package that uses AMQP, S3 and the database; it decides the outcome of each delivery."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden_package(name: str) -> Iterator[None]:
    """A library that is imported inside the block, and takes `name` where it is installed, does without it in this whole process.

    No effect where `name` is imported already.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment] # an import of it fails, as where it is not installed
    try:
        yield
    finally:
        sys.modules.pop(name, None)


with hidden_package("rich"):  # structlog takes it for tracebacks that show local variables, which ours never show: 4 MB in every process
    import structlog  # noqa: F401

sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type] # its command line, which nothing here uses, takes 5 MB with rich and click
