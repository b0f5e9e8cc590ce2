"""Formatting of values, and addresses of static files."""

import re

import pytest

from gateway.console.rendering import asset_url, format_duration, format_size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0204, "20 ms"), (1.0, "1.0 s"), (59.94, "59.9 s"), (125, "2 min 5 s"), (3600, "1 h 0 min"), (7384, "2 h 3 min")],
)
def test_duration_has_unit_of_its_size(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (230_000_000, "230 MB"), (2.5e9, "2.5 GB"), (7e12, "7.0 TB")]
)
def test_size_has_decimal_unit(size: float, text: str) -> None:
    assert format_size(size) == text


def test_asset_address_contains_content_hash() -> None:
    assert re.fullmatch(r"/console/static/console\.css\?v=[0-9a-f]{12}", asset_url("console.css"))
    assert asset_url("console.css") != asset_url("console.js")
