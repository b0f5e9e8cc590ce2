"""Structured logs: one JSON object per line, or colours on a terminal. Secrets and prompts are masked.

Records that libraries write through `logging` have the same form.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from itertools import islice
from typing import Any

import structlog
from structlog.stdlib import ProcessorFormatter

from bus.masking import cut_text, mask_forms, mask_known, mask_standard_error
from bus.observability.settings import LogSettings, remember_environment

_SECRET_NAME = re.compile(r"token|secret|password|authorization|api_?key|signature_key|cookie|credential", re.IGNORECASE)
_COUNT_NAME = re.compile(r"^(max_|new_|prompt_|completion_)*tokens$", re.IGNORECASE)
_PROMPT_NAME = re.compile(r"prompt|^(question|text|prediction|negative|messages|body|payload)$", re.IGNORECASE)
MAX_ITEMS, MAX_DEPTH = 1_000, 20
"""Of lists and mappings; what lies beyond them is not logged."""


def mask_entry(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask values by their name, at any depth, and secrets inside other text."""
    for name, value in entry.items():
        entry[name] = mask_value(name, value)
    return entry


@lru_cache(4096)
def classify_name(name: str) -> str:
    """`secret`, `prompt` or `plain`, by the name of a value."""
    if _SECRET_NAME.search(name) and not _COUNT_NAME.match(name):
        return "secret"
    return "prompt" if _PROMPT_NAME.search(name) else "plain"


def mask_value(name: str, value: Any, depth: int = 0) -> Any:
    classification = classify_name(name)
    if classification == "secret":
        return "***"
    if classification == "prompt" and not isinstance(value, int | float | bool | None):
        return f"*** ({len(str(value))} characters)"
    if isinstance(value, str):  # most are; to ask whether one is a Mapping takes longer than to mask it
        return mask_forms(cut_text(value))
    if isinstance(value, Mapping | list | tuple) and depth >= MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {key: mask_value(str(key), inner, depth + 1) for key, inner in islice(value.items(), MAX_ITEMS)}
    if isinstance(value, list | tuple):
        return [mask_value("", inner, depth + 1) for inner in value[:MAX_ITEMS]]
    return value


def mask_line(_: Any, __: str, line: str) -> str:
    """Mask the known secrets in the whole line, once: whatever an entry was made of, and whoever wrote it."""
    return mask_known(line)


def configure_logging(level: str | None = None, *, json: bool | None = None) -> None:
    """Log to standard error. `level`: None means LOG_LEVEL. `json`: None means JSON unless standard error is a terminal."""
    remember_environment()
    mask_standard_error()
    level = level or LogSettings().level
    json = not sys.stderr.isatty() if json is None else json
    # A plain traceback: the rich one shows local variables, which may hold secrets.
    colours = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = structlog.processors.JSONRenderer() if json else colours
    first: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [structlog.processors.format_exc_info, mask_entry, renderer, mask_line]
    structlog.configure(
        processors=[*first, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    library_handler = logging.StreamHandler(sys.stderr)
    library_handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name],
            processors=[ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[library_handler])
