"""The timeline of a job as coordinates for an SVG: one row for each step, with a bar for its time in the queue and one for processing."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gateway.console.job_progress import JobProgress, StepProgress

WIDTH, LABEL_WIDTH, RIGHT_MARGIN = 960, 150, 70
TOP_MARGIN, ROW_HEIGHT, BOTTOM_MARGIN = 34, 38, 10
MIN_BAR_WIDTH, MAX_TICKS = 2, 8
TICK_INTERVALS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
"""Seconds."""


@dataclass(frozen=True)
class TimelineBar:
    """`kind`: queued, or the state of the step."""

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
    width: int = WIDTH


def build_timeline(progress: JobProgress, now: datetime | None = None) -> Timeline | None:
    """None before the first step event. Steps that have not ended extend to `now`."""
    now = now or datetime.now(UTC)
    steps = sorted((step for step in progress.steps.values() if step.sent_at), key=lambda step: step.started_at or now)
    if not steps:
        return None
    start = min([step.sent_at for step in steps if step.sent_at] + ([progress.accepted_at] if progress.accepted_at else []))
    end = max(step.ended_at or now for step in steps)
    span = max((end - start).total_seconds(), 0.001)
    scale = (WIDTH - LABEL_WIDTH - RIGHT_MARGIN) / span

    def x(moment: datetime) -> float:
        return round(LABEL_WIDTH + (moment - start).total_seconds() * scale, 1)

    rows = [_build_row(index, label, row_steps, x, now) for index, (label, row_steps) in enumerate(_group_by_row(steps).items())]
    return Timeline(TOP_MARGIN + ROW_HEIGHT * len(rows) + BOTTOM_MARGIN, rows, _build_ticks(span, scale))


def _build_ticks(span: float, scale: float) -> list[Tick]:
    interval = next((interval for interval in TICK_INTERVALS if span / interval <= MAX_TICKS), TICK_INTERVALS[-1])
    return [Tick(round(LABEL_WIDTH + number * interval * scale, 1), number * interval) for number in range(int(span / interval) + 1)]


def _group_by_row(steps: list[StepProgress]) -> dict[str, list[StepProgress]]:
    """Steps by row label. All progress webhooks share a row; a repeated step gets a row for each run."""
    rows: dict[str, list[StepProgress]] = defaultdict(list)
    runs: dict[str, int] = defaultdict(int)
    for step in steps:
        if step.detached:
            rows["webhook · progress"].append(step)
            continue
        runs[step.step] += 1
        rows[step.step if runs[step.step] == 1 else f"{step.step} · {runs[step.step]}"].append(step)
    return rows


def _build_row(index: int, label: str, steps: list[StepProgress], x: Callable[[datetime], float], now: datetime) -> TimelineRow:
    bars = [bar for step in steps for bar in _build_bars(step, x, now)]
    duration = sum(((step.ended_at or now) - (step.started_at or now)).total_seconds() for step in steps)
    right = max(bar.x + bar.width for bar in bars)
    return TimelineRow(TOP_MARGIN + ROW_HEIGHT * index, label, steps[-1].worker or "", bars, f"{duration:.2f} s", right + 8)


def _build_bars(step: StepProgress, x: Callable[[datetime], float], now: datetime) -> tuple[TimelineBar, TimelineBar]:
    """The time in the queue, and the processing time."""
    assert step.sent_at
    sent, started, ended = step.sent_at, step.started_at or now, step.ended_at or now
    return (
        TimelineBar(x(sent), round(max(x(started) - x(sent), 0), 1), "queued", _format_seconds(started - sent)),
        TimelineBar(x(started), round(max(x(ended) - x(started), MIN_BAR_WIDTH), 1), step.state, _format_seconds(ended - started)),
    )


def _format_seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():.3f} s"
