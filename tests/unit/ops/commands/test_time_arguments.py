"""Timestamps and ages on the command line."""

from datetime import UTC, datetime, timedelta

import pytest

from ops.commands.time_arguments import parse_age, parse_time
from ops.errors import SetupError

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("15m", NOW - timedelta(minutes=15)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("30d", NOW - timedelta(days=30)),
        ("2w", NOW - timedelta(weeks=2)),
        ("9999999999999999w", datetime(1970, 1, 1, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:00", NOW),
        ("2026-01-31T14:00+02:00", NOW),
    ],
)
def test_age_or_timestamp_is_parsed(written: str, expected: datetime) -> None:
    assert parse_time(written, NOW) == expected


@pytest.mark.parametrize("written", ["", "d", "-1d", "1y", "yesterday", "1d2h"])
def test_invalid_age_is_rejected(written: str) -> None:
    with pytest.raises(SetupError):
        parse_age(written)
    with pytest.raises(SetupError):
        parse_time(written)
