"""Pictures, generation details, verdict and measurements of a job."""

from typing import Any

from contracts.event import EventKind
from contracts.job import Job
from gateway.console.job_progress import JobProgress
from gateway.console.job_view import ConsoleJobView
from tests.unit.gateway.console.events import START, accepted, job_event, step_event


def claim(name: str, media_type: str = "image/png") -> dict[str, Any]:
    return {"uri": f"s3://store/{name}", "sha256": "0" * 64, "size": 1, "media_type": media_type}


def view(*events: Any) -> ConsoleJobView:
    job = Job(job_id="j", kind="image_order", state="running", created_at=START, updated_at=START)
    return ConsoleJobView(job, JobProgress.from_events(events))


def image_event(**result: Any) -> Any:
    return step_event(EventKind.COMPLETED, "image", 1, result=result)


def test_pictures_of_job_result_precede_those_of_steps() -> None:
    result = {"files": [claim("final one.png"), claim("notes.txt", "text/plain")]}
    pictures = view(
        accepted("image"), image_event(images=[claim("draft.png")], seeds=[7]), job_event(EventKind.COMPLETED, 2, result=result)
    ).pictures
    assert [(picture.href, picture.seed) for picture in pictures] == [("/console/jobs/j/files/final%20one.png", 7)]


def test_pictures_of_latest_step_are_shown_without_job_result() -> None:
    signed = step_event(EventKind.COMPLETED, "watermark", 2, result={"images": [claim("signed-1.png"), claim("signed-2.png")]})
    pictures = view(accepted("image", "watermark"), image_event(images=[claim("a.png")], metadata={"seed": 3}), signed).pictures
    assert [(picture.href.rpartition("/")[2], picture.seed) for picture in pictures] == [("signed-1.png", 3), ("signed-2.png", None)]
    assert view(accepted("image")).pictures == []


def test_generation_details_join_order_and_result() -> None:
    event = image_event(metadata={"seed": 1, "steps": 30}, made_with={"model": "m", "scheduler": "ddim"}, largest_batch=4)
    details = view(accepted("image", prompt="a boat", artist="Kim", scheduler="euler", negative_prompt=""), event).generation_details
    assert details == {"artist": "Kim", "scheduler": "ddim", "seed": 1, "steps": 30, "model": "m", "largest_batch": 4}


def test_later_verdict_overrides_earlier_one() -> None:
    validate = step_event(EventKind.COMPLETED, "validate", 1, result={"is_valid": False, "analysis": "blurred", "compute_seconds": 1})
    judge = step_event(EventKind.COMPLETED, "judge", 2, result={"is_valid": True, "evidence": {"covered_share": 0.1, "unknown": None}})
    overlay = step_event(EventKind.COMPLETED, "overlay", 3, result={"contrast_ratio": 4.5})
    job = view(accepted("validate", "overlay", "judge"), validate, judge, overlay)
    assert job.verdict == {"is_valid": True, "analysis": "blurred"}
    assert job.evidence == {"covered_share": 0.1, "contrast_ratio": 4.5}


def test_prompt_falls_back_to_kind() -> None:
    assert view(accepted("image", prompt="a boat")).prompt == "a boat"
    assert view(accepted("image")).prompt == "image_order"
