"""Named queries in `.sql` files."""

from pathlib import Path

import pytest

from bus.sql import load_queries


def test_queries_are_found_by_name_beside_the_module(tmp_path: Path) -> None:
    (tmp_path / "things.sql").write_text(
        "-- a file\n\n-- name: first\nselect 1\n-- a comment\n\n-- name: second\nselect '안녕'\n", encoding="utf-8"
    )
    assert load_queries(str(tmp_path / "things.py"), "things.sql") == {"first": "select 1\n-- a comment", "second": "select '안녕'"}


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_queries(str(tmp_path / "things.py"), "things.sql")
