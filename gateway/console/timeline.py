"""A job's course as a picture: a row for each step, the wait in a light bar, the work in a dark one. Facts for an SVG, in its units."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.console.course import Course, Leg

WIDTH, LABEL, RIGHT = 960, 150, 70
TOP, ROW, BAR = 34, 38, 16
STEPS_OF_AXIS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)


@dataclass(frozen=True)
class Bar:
    x: float
    width: float
    kind: str
    says: str


@dataclass(frozen=True)
class Row:
    y: float
    label: str
    worker: str
    bars: list[Bar]
    says: str
    says_x: float


@dataclass(frozen=True)
class Tick:
    x: float
    seconds: float


@dataclass(frozen=True)
class Timeline:
    height: int
    rows: list[Row]
    ticks: list[Tick]
    seconds: float
    width: int = WIDTH


def timeline_of(course: Course, now: datetime | None = None) -> Timeline | None:
    """None while nothing has begun."""
    now = now or datetime.now(UTC)
    legs = sorted((leg for leg in course.legs.values() if leg.asked), key=lambda leg: leg.began or now)
    if not legs:
        return None
    start = min([leg.asked for leg in legs if leg.asked] + ([course.accepted] if course.accepted else []))
    end = max(leg.ended or now for leg in legs)
    span = max((end - start).total_seconds(), 0.001)
    scale = (WIDTH - LABEL - RIGHT) / span

    def x(moment: datetime) -> float:
        return round(LABEL + (moment - start).total_seconds() * scale, 1)

    rows = [_row(index, name, together, x, now) for index, (name, together) in enumerate(_grouped(legs).items())]
    step = next((step for step in STEPS_OF_AXIS if span / step <= 8), STEPS_OF_AXIS[-1])
    ticks = [Tick(round(LABEL + number * step * scale, 1), number * step) for number in range(int(span / step) + 1)]
    return Timeline(TOP + ROW * len(rows) + 10, rows, ticks, span)


def _grouped(legs: list[Leg]) -> dict[str, list[Leg]]:
    """Words of progress share a row; a step that ran again has another."""
    rows: dict[str, list[Leg]] = defaultdict(list)
    runs: dict[str, int] = defaultdict(int)
    for leg in legs:
        if leg.aside:
            rows["webhook · progress"].append(leg)
            continue
        runs[leg.step] += 1
        rows[leg.step if runs[leg.step] == 1 else f"{leg.step} · {runs[leg.step]}"].append(leg)
    return rows


def _row(index: int, name: str, legs: list[Leg], x: Callable[[datetime], float], now: datetime) -> Row:
    bars: list[Bar] = []
    for leg in legs:
        assert leg.asked
        began, ended = leg.began or now, leg.ended or now
        bars.append(Bar(x(leg.asked), round(max(x(began) - x(leg.asked), 0), 1), "waited", f"{(began - leg.asked).total_seconds():.3f} s"))
        bars.append(Bar(x(began), round(max(x(ended) - x(began), 2), 1), leg.state, f"{(ended - began).total_seconds():.3f} s"))
    worked = sum(((leg.ended or now) - (leg.began or now)).total_seconds() for leg in legs)
    right = max(bar.x + bar.width for bar in bars)
    return Row(TOP + ROW * index, name, legs[-1].worker or "", bars, f"{worked:.2f} s", right + 8)
