"""The validate step (stage 1): does a picture suit its advertisement?

Either by ids, which the worker looks up in the source system's tables, or complete in itself: a claim and a text.
"""

from typing import Annotated

from pydantic import Field

from contracts.claim import Claim
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

RecordId = Annotated[str, Field(max_length=255)]


class Validate(Command):
    job_variants_id: RecordId | None = Field(
        None, description="With it, the picture and the text are looked up, and the variant's state is kept."
    )
    job_id: RecordId | None = None
    tenant_id: RecordId | None = None
    asset_url: str | None = Field(
        None, max_length=2048, description="Read by nobody: the variant names its picture. Kept from the source system."
    )
    image: Claim | None = Field(None, description="The picture, where no ids are given.")
    images: list[Claim] = Field(default_factory=list, max_length=16, description="The same along a slip: the first is looked at.")
    ad_copy_text: str | None = Field(None, max_length=4000)
    prompt: str | None = Field(None, max_length=4000, description="Asked instead of the usual question.")
    once: bool = Field(False, description="A variant that has gone on already is answered with the verdict it has.")


class FontRecommendation(WireModel):
    font_style: str
    font_name: str
    font_size_category: str
    font_color_hex: str
    reasoning: str


class ValidateDone(Result):
    job_id: str
    vlm_trace_id: str | None = Field(None, description="The row in `vlm_traces`; absent where no variant was looked up.")
    is_valid: bool
    image_quality_ok: bool
    relevance_score: float = Field(ge=0, le=1)
    analysis: str
    issues: list[str]
    recommendations: list[str]
    font_recommendation: FontRecommendation | None = None
    repaired: bool = Field(False, description="The model's server could not constrain the answer; it was mended into this form.")
    seen_by: str = Field(
        "", description="The model. Not called `model`: a result's fields become variables, and an image order has a `model` too."
    )
