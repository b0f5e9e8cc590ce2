"""The standard itineraries: which stops a job of a kind makes, and what its result is. Whoever places an order fills in the arguments."""

from pydantic import Field

from contracts.carried import Carried
from contracts.slip import Stop
from contracts.wire import Step

REFUSED = {"code": "refused", "message": "No picture suited the advertisement.", "step": Step.VALIDATE}


class Itinerary(Carried):
    """Stops in order. `answer`: the variables of the job's result."""

    stops: list[Stop]
    answer: list[str]
    on_progress: Stop | None = None
    on_failure: Stop | None = None
    on_refusal: Stop | None = None
    goes_back_to: Step | None = Field(None, description="Where a shut gate leads, as often as the order allows.")
    fresh: list[str] = Field(default_factory=list, description="What is another value then.")


_COMPLETE = Stop(step=Step.WEBHOOK, arguments={"kind": "complete"})
_PROGRESS = Stop(step=Step.WEBHOOK, arguments={"kind": "progress"})
_FAILED = Stop(step=Step.WEBHOOK, arguments={"kind": "failed"})
_REFUSED = Stop(step=Step.WEBHOOK, arguments={"kind": "failed", "fault": REFUSED})

ITINERARIES: dict[str, Itinerary] = {
    "image_order": Itinerary(
        stops=[Stop(step=Step.IMAGE), Stop(step=Step.WATERMARK), Stop(step=Step.UPLOAD), _COMPLETE],
        answer=["files", "result_url", "result_urls", "metadata"],
        on_progress=_PROGRESS,
        on_failure=_FAILED,
    ),
    "ad": Itinerary(
        stops=[
            Stop(step=Step.TEXT),
            Stop(step=Step.IMAGE),
            Stop(step=Step.VALIDATE, gate="is_valid"),
            Stop(step=Step.OVERLAY),
            Stop(step=Step.JUDGE),
            Stop(step=Step.WATERMARK),
            Stop(step=Step.UPLOAD),
            _COMPLETE,
        ],
        answer=[
            *("files", "result_url", "result_urls", "metadata", "text"),
            *("is_valid", "relevance_score", "font_recommendation", "layout", "contrast_ratio"),
            *("on_brief", "occlusion", "contrast_ok", "cta_present", "analysis", "issues", "evidence"),
        ],
        on_progress=_PROGRESS,
        on_failure=_FAILED,
        on_refusal=_REFUSED,
        goes_back_to=Step.IMAGE,
        fresh=["seed"],
    ),
}
