"""The validate step (stage 1): does an image suit its advertisement?

The input is given by ids, which the worker looks up in the source system's tables, or in full: a claim and a text.
"""

from typing import Annotated

from pydantic import Field

from contracts.claim import Claim
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

RecordId = Annotated[str, Field(max_length=255)]


class Validate(Command):
    """Validate an image."""

    job_variants_id: RecordId | None = Field(
        None, description="With it the image and the text are looked up, and the state of the variant is updated."
    )
    job_id: RecordId | None = None
    tenant_id: RecordId | None = None
    asset_url: str | None = Field(
        None, max_length=2048, description="Not read, because the variant names its image. A field of the source system."
    )
    image: Claim | None = Field(None, description="The image, when no ids are given.")
    images: list[Claim] = Field(
        default_factory=list, max_length=16, description="The same on a routing slip: the first image is validated."
    )
    ad_copy_text: str | None = Field(None, max_length=4000)
    prompt: str | None = Field(None, max_length=4000, description="Replaces the standard prompt.")
    once: bool = Field(False, description="If the variant has passed this stage already, return its stored verdict.")


class FontRecommendation(WireModel):
    """A font that would suit the image."""

    font_style: str
    font_name: str
    font_size_category: str
    font_color_hex: str
    reasoning: str


class ValidateDone(Result):
    """The verdict on an image."""

    job_id: str
    vlm_trace_id: str | None = Field(None, description="The id of the row in `vlm_traces`; absent when no variant was looked up.")
    is_valid: bool
    image_quality_ok: bool
    relevance_score: float = Field(ge=0, le=1)
    analysis: str
    issues: list[str]
    recommendations: list[str]
    font_recommendation: FontRecommendation | None = None
    repaired: bool = Field(
        False, description="The model server could not constrain the output; the answer was repaired to fit this schema."
    )
    seen_by: str = Field(
        "",
        description="The name of the model. It is not called `model`, because it becomes a variable, and the image command has a `model`.",
    )
