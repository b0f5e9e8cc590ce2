"""What is committed is what the code says."""

from pathlib import Path

from ops.docgen import generate


def test_every_written_document_is_up_to_date() -> None:
    assert not generate.stale_files(), "a contract or a setting has changed: run `make documents` and commit what it writes"


def test_a_document_that_was_edited_by_hand_is_stale(tmp_path: Path) -> None:
    generate.write_files(tmp_path)
    assert not generate.stale_files(tmp_path)
    with (tmp_path / "docs/configuration.md").open("a") as page:
        page.write("a word\n")
    assert generate.stale_files(tmp_path) == ["docs/configuration.md"]
