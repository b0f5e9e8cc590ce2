"""JSON on its way into Postgres."""

import json

import pytest

from bus.database import storable_json


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("a\x00b", "a\ufffdb"),
        ("\x00\x00", "\ufffd\ufffd"),
        ("a\\u0000b", "a\\u0000b"),
        ("a\\\x00b", "a\\\ufffdb"),
        ("안녕", "안녕"),
    ],
)
def test_the_character_that_postgres_refuses_is_marked_as_lost(said: str, kept: str) -> None:
    """And nothing that only looks like it."""
    assert json.loads(storable_json({"text": [said]})) == {"text": [kept]}
