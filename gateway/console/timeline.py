"""A job's course as a picture: a row for each step, the wait in a light bar, the work in a dark one. Facts for an SVG, in its units."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.console.job_progress import JobProgress, StepProgress

WIDTH, LABEL_WIDTH, RIGHT_MARGIN = 960, 150, 70
TOP_MARGIN, ROW_HEIGHT, BAR_HEIGHT = 34, 38, 16
TICK_INTERVALS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)


@dataclass(frozen=True)
class TimelineBar:
    x: float
    width: float
    kind: str
    duration: str


@dataclass(frozen=True)
class TimelineRow:
    y: float
    label: str
    worker: str
    bars: list[TimelineBar]
    duration: str
    duration_x: float


@dataclass(frozen=True)
class Tick:
    x: float
    seconds: float


@dataclass(frozen=True)
class Timeline:
    height: int
    rows: list[TimelineRow]
    ticks: list[Tick]
    seconds: float
    width: int = WIDTH


def build_timeline(progress: JobProgress, now: datetime | None = None) -> Timeline | None:
    """None while nothing has begun."""
    now = now or datetime.now(UTC)
    legs = sorted((leg for leg in progress.steps.values() if leg.sent_at), key=lambda leg: leg.started_at or now)
    if not legs:
        return None
    start = min([leg.sent_at for leg in legs if leg.sent_at] + ([progress.accepted_at] if progress.accepted_at else []))
    end = max(leg.ended_at or now for leg in legs)
    span = max((end - start).total_seconds(), 0.001)
    scale = (WIDTH - LABEL_WIDTH - RIGHT_MARGIN) / span

    def x(moment: datetime) -> float:
        return round(LABEL_WIDTH + (moment - start).total_seconds() * scale, 1)

    rows = [_build_row(index, name, together, x, now) for index, (name, together) in enumerate(_group_by_row(legs).items())]
    step = next((step for step in TICK_INTERVALS if span / step <= 8), TICK_INTERVALS[-1])
    ticks = [Tick(round(LABEL_WIDTH + number * step * scale, 1), number * step) for number in range(int(span / step) + 1)]
    return Timeline(TOP_MARGIN + ROW_HEIGHT * len(rows) + 10, rows, ticks, span)


def _group_by_row(steps: list[StepProgress]) -> dict[str, list[StepProgress]]:
    """Words of progress share a row; a step that ran again has another."""
    rows: dict[str, list[StepProgress]] = defaultdict(list)
    runs: dict[str, int] = defaultdict(int)
    for leg in steps:
        if leg.detached:
            rows["webhook · progress"].append(leg)
            continue
        runs[leg.step] += 1
        rows[leg.step if runs[leg.step] == 1 else f"{leg.step} · {runs[leg.step]}"].append(leg)
    return rows


def _build_row(index: int, name: str, steps: list[StepProgress], x: Callable[[datetime], float], now: datetime) -> TimelineRow:
    bars: list[TimelineBar] = []
    for leg in steps:
        assert leg.sent_at
        began, ended = leg.started_at or now, leg.ended_at or now
        bars.append(
            TimelineBar(
                x(leg.sent_at), round(max(x(began) - x(leg.sent_at), 0), 1), "waited", f"{(began - leg.sent_at).total_seconds():.3f} s"
            )
        )
        bars.append(TimelineBar(x(began), round(max(x(ended) - x(began), 2), 1), leg.state, f"{(ended - began).total_seconds():.3f} s"))
    worked = sum(((leg.ended_at or now) - (leg.started_at or now)).total_seconds() for leg in steps)
    right = max(bar.x + bar.width for bar in bars)
    return TimelineRow(TOP_MARGIN + ROW_HEIGHT * index, name, steps[-1].worker or "", bars, f"{worked:.2f} s", right + 8)
