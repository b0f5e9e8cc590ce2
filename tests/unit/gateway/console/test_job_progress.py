"""The progress of a job, built from its events."""

import pytest

from contracts.event import EventKind
from contracts.fault import Fault
from gateway.console.job_progress import JobProgress
from tests.unit.gateway.console.events import accepted, at, job_event, progress, step_event


def test_accepted_job_has_only_pending_steps() -> None:
    job = JobProgress.from_events([accepted("image", "watermark", prompt="a boat")])
    assert [(step.step, step.state) for step in job.main_steps] == [("image", "waiting"), ("watermark", "waiting")]
    assert (job.state, job.percent, job.finished, job.order) == ("accepted", 0, False, {"prompt": "a boat"})


def test_progress_event_starts_step() -> None:
    event = step_event(
        EventKind.PROGRESS, "image", 10, seconds=3, queued_seconds=2, progress=progress(40, estimated_seconds=9, preview="p")
    )
    job = JobProgress.from_events([accepted("image", "watermark"), event])
    step = job.main_steps[0]
    assert (step.state, step.percent, step.remaining_seconds, step.step_counts, step.preview) == ("running", 40, 9, (4, 10), "p")
    assert (step.sent_at, step.started_at, step.queued_seconds) == (at(5), at(7), 2)
    assert (job.state, job.percent) == ("running", 20)


def test_completed_step_is_full_and_drops_preview() -> None:
    job = JobProgress.from_events(
        [
            accepted("image"),
            step_event(EventKind.PROGRESS, "image", 1, progress=progress(40, preview="p")),
            step_event(EventKind.COMPLETED, "image", 5, seconds=4, result={"seeds": [1]}),
            step_event(EventKind.PROGRESS, "image", 6, progress=progress(60)),
        ]
    )
    step = job.main_steps[0]
    assert (step.state, step.percent, step.duration_seconds, step.preview, step.result) == ("completed", 100, 4, None, {"seeds": [1]})


def test_device_time_of_steps_is_summed() -> None:
    """Also of a failed step; a step without a device has none."""
    steps = [
        step_event(EventKind.COMPLETED, "image", 5, device_seconds=1.25),
        step_event(EventKind.COMPLETED, "watermark", 6),
        step_event(EventKind.FAILED, "judge", 9, device_seconds=0.5),
    ]
    job = JobProgress.from_events([accepted("image", "watermark", "judge"), *steps])
    assert [step.device_seconds for step in job.main_steps] == [1.25, None, 0.5]
    assert job.device_seconds == 1.75
    assert JobProgress.from_events([accepted("image")]).device_seconds is None


def test_failed_job_has_fault_and_no_pending_steps() -> None:
    fault = Fault(code="prompt-refused", message="no", step="image")
    job = JobProgress.from_events(
        [
            accepted("image", "watermark"),
            step_event(EventKind.FAILED, "image", 2, fault=fault),
            job_event(EventKind.FAILED, 3, fault=fault),
        ]
    )
    assert [(step.step, step.state) for step in job.main_steps] == [("image", "failed")]
    assert (job.state, job.fault, job.finished, job.duration_seconds) == ("failed", fault, True, 3)


@pytest.mark.parametrize(("kind", "percent"), [(EventKind.COMPLETED, 100), (EventKind.CANCELLED, 50)])
def test_completed_job_is_full_and_cancelled_job_keeps_its_percent(kind: EventKind, percent: int) -> None:
    job = JobProgress.from_events(
        [
            accepted("image"),
            step_event(EventKind.PROGRESS, "image", 1, progress=progress(50)),
            job_event(kind, 2),
        ]
    )
    assert (job.state, job.percent) == (kind.value, percent)


def test_repeated_step_consumes_one_pending_step_for_each_run() -> None:
    job = JobProgress.from_events(
        [
            accepted("image", "validate", "image"),
            step_event(EventKind.COMPLETED, "image", 2, "m-1"),
            step_event(EventKind.COMPLETED, "image", 4, "m-2"),
        ]
    )
    assert [step.step for step in job.main_steps] == ["image", "image", "validate"]


def test_progress_webhook_is_not_a_main_step() -> None:
    job = JobProgress.from_events(
        [
            accepted("image", "webhook"),
            step_event(EventKind.COMPLETED, "webhook", 1, "m-progress", result={"kind": "progress"}),
            step_event(EventKind.COMPLETED, "webhook", 2, "m-complete", result={"kind": "complete"}),
        ]
    )
    assert [step.message_id for step in job.main_steps] == ["m-complete", ""]
    assert [step.message_id for step in job.webhook_steps] == ["m-progress", "m-complete"]


def test_send_time_is_not_before_end_of_previous_step() -> None:
    """The queue time is computed from AMQP timestamps, which have whole seconds."""
    job = JobProgress.from_events(
        [
            accepted("image", "watermark"),
            step_event(EventKind.COMPLETED, "image", 2.75, seconds=2),
            step_event(EventKind.COMPLETED, "watermark", 4, seconds=1, queued_seconds=1),
        ]
    )
    watermark = job.steps["watermark", "m-watermark"]
    assert (watermark.sent_at, watermark.queued_seconds) == (at(2.75), 0.25)
