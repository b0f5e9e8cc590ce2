"""Loads SQL from `.sql` files beside the code that runs it; each query stands under a line `-- name: …`."""

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)


def load_queries(module_file: str, file: str) -> dict[str, str]:
    """The queries by name, from `file` in the folder of `module_file` (a module's `__file__`)."""
    _, *parts = _NAME.split(Path(module_file).with_name(file).read_text(encoding="utf-8"))
    return dict(zip(parts[::2], (text.strip() for text in parts[1::2]), strict=True))
