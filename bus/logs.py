"""Structured logs: one JSON line an entry, or colours on a terminal. Secrets never appear: what looks like one is masked."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET_NAME = re.compile(r"token|secret|password|authorization|api_key|signature_key", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^:/@\s]+:)[^@\s]+(@)")


def mask(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask values by their name, and passwords inside URLs."""
    for name, value in entry.items():
        if _SECRET_NAME.search(name):
            entry[name] = "***"
        elif isinstance(value, str):
            entry[name] = _URL_PASSWORD.sub(r"\1***\2", value)
    return entry


def open_logs(level: str = "INFO", *, json: bool | None = None) -> None:
    """Log to standard error. `json`: None decides by whether a person is looking."""
    json = not sys.stderr.isatty() if json is None else json
    renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            mask,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
