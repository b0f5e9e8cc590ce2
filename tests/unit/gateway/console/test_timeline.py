"""The coordinates of a job's timeline."""

from contracts.event import EventKind
from gateway.console.job_progress import JobProgress
from gateway.console.timeline import LABEL_WIDTH, RIGHT_MARGIN, ROW_HEIGHT, TOP_MARGIN, WIDTH, build_timeline
from tests.unit.gateway.console.events import accepted, at, progress, step_event


def test_no_timeline_before_first_step_event() -> None:
    assert build_timeline(JobProgress.from_events([accepted("image")])) is None


def test_bars_show_queue_time_and_processing_time() -> None:
    job = JobProgress.from_events([accepted("image"), step_event(EventKind.COMPLETED, "image", 10, seconds=6, queued_seconds=4)])
    timeline = build_timeline(job)
    assert timeline
    queued, processing = timeline.rows[0].bars
    scale = (WIDTH - LABEL_WIDTH - RIGHT_MARGIN) / 10
    assert (queued.kind, queued.x, queued.width, queued.duration) == ("queued", LABEL_WIDTH, round(4 * scale, 1), "4.000 s")
    assert (processing.kind, processing.width, processing.duration) == ("completed", round(6 * scale, 1), "6.000 s")
    assert processing.x + processing.width == WIDTH - RIGHT_MARGIN
    assert (timeline.rows[0].worker, timeline.rows[0].duration) == ("w-1", "6.00 s")


def test_running_step_extends_to_now() -> None:
    job = JobProgress.from_events([accepted("image"), step_event(EventKind.PROGRESS, "image", 2, seconds=2, progress=progress(10))])
    timeline = build_timeline(job, at(8))
    assert timeline
    assert [(bar.kind, bar.duration) for bar in timeline.rows[0].bars] == [("queued", "0.000 s"), ("running", "8.000 s")]


def test_short_step_has_visible_bar() -> None:
    job = JobProgress.from_events(
        [
            accepted("image", "upload"),
            step_event(EventKind.COMPLETED, "image", 1000, seconds=1000),
            step_event(EventKind.COMPLETED, "upload", 1000, seconds=0.001),
        ]
    )
    timeline = build_timeline(job)
    assert timeline
    assert timeline.rows[1].bars[1].width == 2


def test_repeated_step_has_own_row_and_progress_webhooks_share_one() -> None:
    job = JobProgress.from_events(
        [
            accepted("image"),
            step_event(EventKind.COMPLETED, "image", 1, "m-1"),
            step_event(EventKind.COMPLETED, "webhook", 2, "m-2", result={"kind": "progress"}),
            step_event(EventKind.COMPLETED, "image", 3, "m-3"),
            step_event(EventKind.COMPLETED, "webhook", 4, "m-4", result={"kind": "progress"}),
        ]
    )
    timeline = build_timeline(job)
    assert timeline
    assert [(row.label, len(row.bars)) for row in timeline.rows] == [("image", 2), ("webhook · progress", 4), ("image · 2", 2)]
    assert [row.y for row in timeline.rows] == [TOP_MARGIN + ROW_HEIGHT * index for index in range(3)]


def test_ticks_are_at_most_nine_and_within_timeline() -> None:
    for seconds in (0.004, 1, 59, 3000, 100_000):
        job = JobProgress.from_events([accepted("image"), step_event(EventKind.COMPLETED, "image", seconds, seconds=seconds)])
        timeline = build_timeline(job)
        assert timeline
        assert 1 <= len(timeline.ticks) <= 9, seconds
        assert timeline.ticks[0].x == LABEL_WIDTH
        assert timeline.ticks[-1].x <= WIDTH - RIGHT_MARGIN
