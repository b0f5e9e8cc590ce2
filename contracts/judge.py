"""The judge step (stage 2): may the finished advertisement be published? It combines a model's verdict with measurements.

The input is given by ids, which the worker looks up in the source system's tables, or in full.
"""

from pydantic import Field

from contracts.claim import Claim
from contracts.validate import DEFAULT_VERDICT_DESCRIPTION, RecordId
from contracts.verdict import Evidence, HexColor, Region
from contracts.wire import Command, Result


class Judge(Command):
    """Judge an advertisement."""

    job_variants_id: RecordId | None = None
    job_id: RecordId | None = None
    tenant_id: RecordId | None = None
    overlay_id: RecordId | None = None
    render_asset_url: str | None = Field(None, max_length=2048)
    image: Claim | None = Field(None, description="The advertisement, when no ids are given.")
    images: list[Claim] = Field(default_factory=list, max_length=16, description="The same on a routing slip: the first image is judged.")
    bare_image: Claim | None = Field(None, description="The image without its text.")
    ad_copy_text: str | None = Field(
        None,
        max_length=4000,
        description="The text that the image should show; with ids it is read from the layout, else from the ad copy.",
    )
    text_region: Region | None = Field(None, description="The position of the text; with ids it is read from the layout.")
    text_color: HexColor | None = None
    large_text: bool = Field(False, description="At least 24 pixels, or 18.7 in bold: WCAG then requires a contrast of 3 instead of 4.5.")
    protected_region: Region | None = Field(None, description="What must not be covered, such as the product.")
    once: bool = Field(False, description="If the variant has passed this stage already, return its stored verdict.")
    default_verdict: bool = Field(False, description=DEFAULT_VERDICT_DESCRIPTION)


class JudgeDone(Result):
    """The verdict on an advertisement."""

    job_id: str
    vlm_trace_id: str | None = None
    on_brief: bool
    occlusion: bool
    contrast_ok: bool
    cta_present: bool
    analysis: str
    issues: list[str] = Field(description="The issues that the model reports, and each contradiction between its verdict and the evidence.")
    evidence: Evidence = Evidence()
    repaired: bool = False
    defaulted: bool = False
    seen_by: str = ""
    device_seconds: float | None = Field(None, ge=0, description="Busy time of the device for this request; None: not known.")
