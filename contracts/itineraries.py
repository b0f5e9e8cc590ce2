"""The standard itineraries: the steps of each kind of job, and the fields of its result. The publisher of a job adds the arguments."""

from collections.abc import Mapping

from pydantic import Field

from contracts.slip import SlipStep
from contracts.wire import Step
from contracts.wire_model import WireModel

REFUSED_FAULT = {"code": "refused", "message": "No picture suited the advertisement.", "step": Step.VALIDATE}


class StandardItinerary(WireModel):
    """Steps in order, and the steps on progress, failure and refusal. `answer`: the variables that the job's result contains."""

    steps: list[SlipStep]
    answer: list[str]
    on_progress: SlipStep | None = None
    on_failure: SlipStep | None = None
    on_refusal: SlipStep | None = None
    loop_back_to: Step | None = Field(None, description="The step from which to repeat when a condition is false.")
    reseed: list[str] = Field(default_factory=list, description="The variables that get a new value in each repetition.")


_COMPLETE_WEBHOOK = SlipStep(step=Step.WEBHOOK, arguments={"kind": "complete"})
_PROGRESS_WEBHOOK = SlipStep(step=Step.WEBHOOK, arguments={"kind": "progress"})
_FAILED_WEBHOOK = SlipStep(step=Step.WEBHOOK, arguments={"kind": "failed"})
_REFUSED_WEBHOOK = SlipStep(step=Step.WEBHOOK, arguments={"kind": "failed", "fault": REFUSED_FAULT})

ITINERARIES: Mapping[str, StandardItinerary] = {
    "image_order": StandardItinerary(
        steps=[SlipStep(step=Step.IMAGE), SlipStep(step=Step.WATERMARK), SlipStep(step=Step.UPLOAD), _COMPLETE_WEBHOOK],
        answer=["files", "thumbnails", "result_url", "result_urls", "metadata"],
        on_progress=_PROGRESS_WEBHOOK,
        on_failure=_FAILED_WEBHOOK,
    ),
    "ad": StandardItinerary(
        steps=[
            SlipStep(step=Step.TEXT),
            SlipStep(step=Step.IMAGE),
            SlipStep(step=Step.VALIDATE, gate="is_valid"),
            SlipStep(step=Step.OVERLAY),
            SlipStep(step=Step.JUDGE),
            SlipStep(step=Step.WATERMARK),
            SlipStep(step=Step.UPLOAD),
            _COMPLETE_WEBHOOK,
        ],
        answer=[
            *("files", "thumbnails", "result_url", "result_urls", "metadata", "text"),
            *("is_valid", "relevance_score", "font_recommendation", "layout", "contrast_ratio"),
            *("on_brief", "occlusion", "contrast_ok", "cta_present", "analysis", "issues", "evidence"),
        ],
        on_progress=_PROGRESS_WEBHOOK,
        on_failure=_FAILED_WEBHOOK,
        on_refusal=_REFUSED_WEBHOOK,
        loop_back_to=Step.IMAGE,
        reseed=["seed"],
    ),
}
