"""The histogram of dead letters over time for each group, as coordinates for an SVG."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from contracts.dead_letter import DeadLetterGroup

WIDTH, HEIGHT, MIN_HEIGHT, GAP = 168, 32, 2.0, 1.5
PERIODS = {"hour": (timedelta(hours=1), 24), "day": (timedelta(days=1), 30)}
"""Duration of one column, and number of columns."""


@dataclass(frozen=True)
class TrendColumn:
    x: float
    y: float
    width: float
    height: float
    count: int
    at: datetime


def build_trends(groups: list[DeadLetterGroup], per: str, now: datetime | None = None) -> dict[str, list[TrendColumn]]:
    """Columns by group id, the newest on the right. `groups` has one entry for each group and period (`at`) with dead letters.

    `per`: hour or day. Heights are relative to the largest column of all groups.
    """
    period, count = PERIODS[per]
    now = now or datetime.now(UTC)
    current = now.replace(minute=0, second=0, microsecond=0, hour=now.hour if per == "hour" else 0)
    maximum = max((group.letters for group in groups), default=1)
    columns: dict[str, list[TrendColumn]] = defaultdict(list)
    for group in groups:
        if group.at is not None and 0 <= (age := round((current - group.at) / period)) < count:
            columns[group.group_id].append(_build_column(group.at, group.letters, maximum, count - 1 - age, WIDTH / count))
    return columns


def _build_column(at: datetime, letters: int, maximum: int, position: int, pitch: float) -> TrendColumn:
    height = max(MIN_HEIGHT, round(letters / maximum * HEIGHT, 1))
    return TrendColumn(round(position * pitch, 1), round(HEIGHT - height, 1), round(pitch - GAP, 1), height, letters, at)
