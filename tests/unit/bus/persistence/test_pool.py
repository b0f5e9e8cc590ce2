"""JSON as Postgres accepts it."""

import json

import pytest

from bus.persistence.pool import encode_postgres_json


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a\x00b", "a\ufffdb"),
        ("\x00\x00", "\ufffd\ufffd"),
        ("a\\u0000b", "a\\u0000b"),
        ("a\\\x00b", "a\\\ufffdb"),
        ("안녕", "안녕"),
    ],
)
def test_nul_character_is_replaced_for_postgres(text: str, stored: str) -> None:
    """And nothing that only looks like it."""
    assert json.loads(encode_postgres_json({"text": [text]})) == {"text": [stored]}
