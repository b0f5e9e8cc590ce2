"""Which documents there are, what each should say, and which of the committed ones say something else."""

from collections.abc import Callable
from pathlib import Path

from ops.asyncapi.document import document, text
from ops.documents import kubernetes
from ops.documents.configuration import configuration, environment
from ops.documents.schemas import schemas
from ops.documents.settings_book import ROOT

DOCUMENTS: dict[str, Callable[[], str]] = {
    ".env.example": environment,
    "docs/configuration.md": configuration,
    "docs/asyncapi.yaml": lambda: text(document()),
    "docs/schemas.json": schemas,
    "ops/deploy/actors.yaml": kubernetes.actors,
}
"""Path from the top of the checkout, and who writes it."""


def stale(root: Path = ROOT) -> list[str]:
    return [name for name, written in DOCUMENTS.items() if not (root / name).exists() or (root / name).read_text() != written()]


def write(root: Path = ROOT) -> None:
    for name, written in DOCUMENTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(written())
