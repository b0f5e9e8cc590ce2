"""The histogram of dead letters over time."""

from datetime import UTC, datetime, timedelta

import pytest

from contracts.dead_letter import DeadLetterGroup
from gateway.console.trend import HEIGHT, WIDTH, build_trends

NOW = datetime(2026, 3, 31, 15, 40, tzinfo=UTC)
HOUR = NOW.replace(minute=0)
DAY = HOUR.replace(hour=0)


def group(group_id: str, at: datetime | None, letters: int) -> DeadLetterGroup:
    return DeadLetterGroup(group_id=group_id, step="image", code="c", at=at, letters=letters, first_failed_at=NOW, last_failed_at=NOW)


@pytest.mark.parametrize(
    ("per", "current", "period", "count"), [("hour", HOUR, timedelta(hours=1), 24), ("day", DAY, timedelta(days=1), 30)]
)
def test_newest_column_is_rightmost_and_oldest_leftmost(per: str, current: datetime, period: timedelta, count: int) -> None:
    columns = build_trends([group("a", current, 1), group("a", current - period * (count - 1), 1)], per, NOW)["a"]
    assert [column.x for column in columns] == [round(WIDTH - WIDTH / count, 1), 0]


def test_columns_outside_period_are_dropped() -> None:
    outside = [group("a", HOUR - timedelta(hours=24), 1), group("a", HOUR + timedelta(hours=1), 1), group("a", None, 1)]
    assert build_trends(outside, "hour", NOW) == {}


def test_height_is_relative_to_largest_column_of_all_groups() -> None:
    trends = build_trends([group("a", HOUR, 100), group("b", HOUR, 50), group("c", HOUR, 1)], "hour", NOW)
    assert [trends[name][0].height for name in "abc"] == [HEIGHT, HEIGHT / 2, 2]
    assert all(trends[name][0].y + trends[name][0].height == HEIGHT for name in "abc")
    assert [trends[name][0].count for name in "abc"] == [100, 50, 1]


def test_no_groups_yield_no_columns() -> None:
    assert build_trends([], "day", NOW) == {}
