"""The embedded PostgreSQL reports a program that its user cannot reach; no local service changes the mode of a folder."""

import ast
import os
from pathlib import Path

import pytest

from ops.docgen.generate import ROOT
from ops.errors import SetupError
from ops.local import postgres

MODE_CHANGES = {"chmod", "lchmod", "fchmod"}


@pytest.mark.skipif(os.geteuid() != 0, reason="another user than root runs the server as itself")
def test_program_in_closed_folder_is_reported_with_remedies_and_unchanged(tmp_path: Path) -> None:
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    (closed / "bin").mkdir()
    with pytest.raises(SetupError, match=r"chmod o\+x .*DATABASE_URL="):
        postgres.require_access(closed / "bin" / "postgres")
    assert closed.stat().st_mode & 0o777 == 0o700


def test_local_services_change_no_mode() -> None:
    """Folders get their mode when they are created, files when they are opened."""
    modules = sorted((ROOT / "ops/local").glob("*.py"))
    assert len(modules) > 5
    calls = [
        f"{path.name}:{node.lineno}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in MODE_CHANGES
    ]
    assert calls == []
