"""The generated documents: writes them, and finds those whose committed version is out of date."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ops.docgen import families, kubernetes, process_settings
from ops.docgen.asyncapi.document import build_document, to_yaml
from ops.docgen.compatibility import find_breaking_changes, released_schemas
from ops.docgen.configuration import configuration_page, env_example
from ops.docgen.contract_schemas import export_schemas, schemas_json
from ops.docgen.settings_catalog import ROOT

GENERATED_FILES: dict[str, Callable[[], str]] = {
    ".env.example": env_example,
    "docs/configuration.md": configuration_page,
    "docs/asyncapi.yaml": lambda: to_yaml(build_document()),
    "docs/schemas.json": schemas_json,
    "ops/deploy/actors.yaml": kubernetes.actors_manifest,
    "ops/deploy/settings.yml": process_settings.settings_file,
}
"""Path relative to the checkout, and the function that makes its text."""
FILES_FROM_MODELS: dict[str, Callable[[], str]] = {families.PAGE: families.engines_page}
"""Those whose functions import torch, which takes seconds."""


def stale_files(root: Path = ROOT, files: Mapping[str, Callable[[], str]] = GENERATED_FILES) -> list[str]:
    """The documents that are missing or differ from what the code generates."""
    return [name for name, generate in files.items() if not (root / name).exists() or (root / name).read_text() != generate()]


def write_files(root: Path = ROOT, files: Mapping[str, Callable[[], str]] = GENERATED_FILES) -> None:
    for name, generate in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(generate())


def main() -> None:
    """Write all documents; report those that changed, and changes of the contracts that break the last release."""
    files = GENERATED_FILES | FILES_FROM_MODELS
    changed = stale_files(ROOT, files)
    write_files(ROOT, files)
    for change in find_breaking_changes(released_schemas(), export_schemas()):
        sys.stderr.write(f"breaks the last release: {change}\n")
    sys.stdout.write("".join(f"written: {name}\n" for name in changed) or "All documents are up to date.\n")
