"""Which documents there are, what each should say, and which of the committed ones say something else."""

from collections.abc import Callable
from pathlib import Path

from ops.docgen import kubernetes
from ops.docgen.asyncapi.document import build_document, to_yaml
from ops.docgen.configuration import configuration_page, env_example
from ops.docgen.contract_schemas import schemas_json
from ops.docgen.settings_catalog import ROOT

GENERATED_FILES: dict[str, Callable[[], str]] = {
    ".env.example": env_example,
    "docs/configuration.md": configuration_page,
    "docs/asyncapi.yaml": lambda: to_yaml(build_document()),
    "docs/schemas.json": schemas_json,
    "ops/deploy/actors.yaml": kubernetes.actors_manifest,
}
"""Path from the top of the checkout, and who writes it."""


def stale_files(root: Path = ROOT) -> list[str]:
    return [name for name, written in GENERATED_FILES.items() if not (root / name).exists() or (root / name).read_text() != written()]


def write_files(root: Path = ROOT) -> None:
    for name, written in GENERATED_FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(written())
