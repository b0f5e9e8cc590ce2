"""The committed documents are the generated ones."""

from functools import cache
from pathlib import Path

from ops.docgen import generate

FILES = {name: cache(function) for name, function in generate.GENERATED_FILES.items()}
"""Each is generated once for both tests."""


def test_committed_documents_are_up_to_date() -> None:
    assert not generate.stale_files(files=FILES), "a contract or a setting has changed: run `make documents` and commit the result"


def test_edited_document_is_stale(tmp_path: Path) -> None:
    generate.write_files(tmp_path, FILES)
    assert not generate.stale_files(tmp_path, FILES)
    with (tmp_path / "docs/configuration.md").open("a") as page:
        page.write("a word\n")
    assert generate.stale_files(tmp_path, FILES) == ["docs/configuration.md"]
