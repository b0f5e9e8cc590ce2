"""Progress of an order: which steps are reported, and the estimate of the remaining time."""

from collections.abc import Sequence

import pytest

from actors.engines.diffusion.progress import ProgressThrottle
from actors.engines.process.protocol import Progressed


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def reported_progress(total: int, steps: Sequence[int]) -> list[tuple[int, int]]:
    throttle = ProgressThrottle(FakeClock())
    reports = [throttle.report_for(Progressed(1, step, total)) for step in steps]
    return [(report.current_step, report.progress_percent) for report in reports if report]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (50, [(0, 0), (13, 26), (25, 50), (38, 76), (45, 90)]),
        (20, [(0, 0), (5, 25), (10, 50), (15, 75), (18, 90)]),
        (3, [(0, 0), (1, 33), (2, 66), (3, 100)]),
        (1, [(0, 0), (1, 100)]),
    ],
)
def test_progress_is_reported_once_per_milestone(total: int, expected: list[tuple[int, int]]) -> None:
    assert reported_progress(total, range(total + 1)) == expected


def test_progress_never_decreases_after_restart() -> None:
    assert reported_progress(50, [*range(30), *range(51)]) == [(0, 0), (13, 26), (25, 50), (38, 76), (45, 90)]


def test_start_is_reported_once_its_total_is_known() -> None:
    """The executor says that a request started; the engine, which knows the steps of its model, says of how many."""
    throttle = ProgressThrottle(FakeClock())
    reports = [throttle.report_for(Progressed(1, step, total)) for step, total in ((0, 0), (0, 10), (1, 10), (3, 10))]
    assert [report and (report.current_step, report.total_steps, report.progress_percent) for report in reports] == [
        None,
        (0, 10, 0),
        None,
        (3, 10, 30),
    ]


def test_remaining_time_is_estimated_from_measured_steps() -> None:
    clock = FakeClock()
    throttle = ProgressThrottle(clock)
    clock.now = 100.0
    throttle.report_for(Progressed(1, 0, 50))
    clock.now = 105.0
    report = throttle.report_for(Progressed(1, 25, 50))
    assert report
    assert report.estimated_seconds == 5
