"""What is committed is what the code says."""

from pathlib import Path

from ops.documents import desk


def test_every_written_document_is_up_to_date() -> None:
    assert not desk.stale(), "a contract or a setting has changed: run `make documents` and commit what it writes"


def test_a_document_that_was_edited_by_hand_is_stale(tmp_path: Path) -> None:
    desk.write(tmp_path)
    assert not desk.stale(tmp_path)
    with (tmp_path / "docs/configuration.md").open("a") as page:
        page.write("a word\n")
    assert desk.stale(tmp_path) == ["docs/configuration.md"]
