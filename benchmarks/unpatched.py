"""Whether the AMQP libraries of this process are as their authors wrote them: no side but our own may have the patches of the bus."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIBRARIES = ("aio_pika", "aiormq", "pamqp")
BUS_FOLDER = Path(__file__).parents[1] / "bus"
MAX_NESTING = 3
"""Of modules, classes and tables, in which a function is looked for."""


class PatchedLibraryError(Exception):
    """A library has functions of the bus."""


def require_unpatched_libraries() -> None:
    """Raises PatchedLibraryError. Call it once the connections are open."""
    if found := sorted(set(patched_names())):
        raise PatchedLibraryError(f"this process has functions of the bus in {', '.join(found)}: it does not measure the library itself")


def patched_names() -> Iterator[str]:
    """The functions of the bus that modules, classes and tables of the libraries have."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in LIBRARIES:
            yield from _patched(name, module, MAX_NESTING)


def _patched(name: str, value: Any, nesting: int) -> Iterator[str]:
    if isinstance(value, property):
        value = value.fget
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    if code is not None:
        if Path(code.co_filename).is_relative_to(BUS_FOLDER):
            yield name
    elif nesting and isinstance(value, dict):
        for key, inner in value.items():
            yield from _patched(f"{name}[{key!r}]", inner, nesting - 1)
    elif nesting and hasattr(value, "__dict__") and (isinstance(value, type) or nesting == MAX_NESTING):
        for key, inner in list(vars(value).items()):
            yield from _patched(f"{name}.{key}", inner, nesting - 1)
