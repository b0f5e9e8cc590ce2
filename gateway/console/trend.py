"""How many letters of each group came when: a row of small bars, in the units of its SVG."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from contracts.dead_letter import DeadLetterGroup

WIDTH, HEIGHT = 168, 32


@dataclass(frozen=True)
class TrendColumn:
    x: float
    y: float
    width: float
    height: float
    count: int
    at: datetime


def build_trends(groups: list[DeadLetterGroup], per: str, now: datetime | None = None) -> dict[str, list[TrendColumn]]:
    """Group id to its columns; an hour or a day without letters has none."""
    unit, count = (timedelta(hours=1), 24) if per == "hour" else (timedelta(days=1), 30)
    now = now or datetime.now(UTC)
    last = now.replace(minute=0, second=0, microsecond=0, hour=now.hour if per == "hour" else 0)
    most = max((group.letters for group in groups), default=1)
    step = WIDTH / count
    columns: dict[str, list[TrendColumn]] = defaultdict(list)
    for group in groups:
        if group.at is None or (age := round((last - group.at) / unit)) >= count or age < 0:
            continue
        height = max(2.0, round(group.letters / most * HEIGHT, 1))
        x = round((count - 1 - age) * step, 1)
        columns[group.group_id].append(TrendColumn(x, round(HEIGHT - height, 1), round(step - 1.5, 1), height, group.letters, group.at))
    return columns
