"""The standard itineraries: which stops a job of a kind makes, and what its result is. Whoever places an order fills in the arguments."""

from pydantic import Field

from contracts.slip import SlipStep
from contracts.wire import Step
from contracts.wire_model import WireModel

REFUSED_FAULT = {"code": "refused", "message": "No picture suited the advertisement.", "step": Step.VALIDATE}


class Itinerary(WireModel):
    """Stops in order. `answer`: the variables of the job's result."""

    stops: list[SlipStep]
    answer: list[str]
    on_progress: SlipStep | None = None
    on_failure: SlipStep | None = None
    on_refusal: SlipStep | None = None
    goes_back_to: Step | None = Field(None, description="Where a shut gate leads, as often as the order allows.")
    fresh: list[str] = Field(default_factory=list, description="What is another value then.")


_COMPLETE_WEBHOOK = SlipStep(step=Step.WEBHOOK, arguments={"kind": "complete"})
_PROGRESS_WEBHOOK = SlipStep(step=Step.WEBHOOK, arguments={"kind": "progress"})
_FAILED_WEBHOOK = SlipStep(step=Step.WEBHOOK, arguments={"kind": "failed"})
_REFUSED_WEBHOOK = SlipStep(step=Step.WEBHOOK, arguments={"kind": "failed", "fault": REFUSED_FAULT})

ITINERARIES: dict[str, Itinerary] = {
    "image_order": Itinerary(
        stops=[SlipStep(step=Step.IMAGE), SlipStep(step=Step.WATERMARK), SlipStep(step=Step.UPLOAD), _COMPLETE_WEBHOOK],
        answer=["files", "result_url", "result_urls", "metadata"],
        on_progress=_PROGRESS_WEBHOOK,
        on_failure=_FAILED_WEBHOOK,
    ),
    "ad": Itinerary(
        stops=[
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
            *("files", "result_url", "result_urls", "metadata", "text"),
            *("is_valid", "relevance_score", "font_recommendation", "layout", "contrast_ratio"),
            *("on_brief", "occlusion", "contrast_ok", "cta_present", "analysis", "issues", "evidence"),
        ],
        on_progress=_PROGRESS_WEBHOOK,
        on_failure=_FAILED_WEBHOOK,
        on_refusal=_REFUSED_WEBHOOK,
        goes_back_to=Step.IMAGE,
        fresh=["seed"],
    ),
}
