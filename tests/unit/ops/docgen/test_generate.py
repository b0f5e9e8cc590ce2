"""The committed documents are the generated ones."""

from pathlib import Path

from ops.docgen import generate


def test_committed_documents_are_up_to_date() -> None:
    assert not generate.stale_files(), "a contract or a setting has changed: run `make documents` and commit the result"


def test_edited_document_is_stale(tmp_path: Path) -> None:
    generate.write_files(tmp_path)
    assert not generate.stale_files(tmp_path)
    with (tmp_path / "docs/configuration.md").open("a") as page:
        page.write("a word\n")
    assert generate.stale_files(tmp_path) == ["docs/configuration.md"]
