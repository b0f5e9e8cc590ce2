"""The judge step (stage 2): may the finished advertisement go out? By ids, or complete in itself; opinion and measurement together."""

from pydantic import Field

from contracts.claim import Claim
from contracts.validate import RecordId
from contracts.verdict import Evidence, Region
from contracts.wire import Command, Result


class Judge(Command):
    job_variants_id: RecordId | None = None
    job_id: RecordId | None = None
    tenant_id: RecordId | None = None
    overlay_id: RecordId | None = None
    render_asset_url: str | None = Field(None, max_length=2048)
    image: Claim | None = Field(None, description="The advertisement, where no ids are given.")
    images: list[Claim] = Field(default_factory=list, max_length=16, description="The same along a slip: the first is looked at.")
    bare_image: Claim | None = Field(None, description="The picture before the text was laid over it.")
    text_region: Region | None = Field(None, description="Where the text stands; by ids it is in the layout.")
    text_color: str | None = Field(None, pattern=r"^#?[0-9A-Fa-f]{6}([0-9A-Fa-f]{2})?$")
    large_text: bool = Field(False, description="At least 24 pixels, or 18.7 bold: WCAG asks for 3 instead of 4.5.")
    protected_region: Region | None = Field(None, description="What must not be covered, such as the product.")
    once: bool = Field(False, description="A variant that has gone on already is answered with the verdict it has.")


class JudgeDone(Result):
    job_id: str
    vlm_trace_id: str | None = None
    on_brief: bool
    occlusion: bool
    contrast_ok: bool
    cta_present: bool
    analysis: str
    issues: list[str] = Field(description="The model's, and each disagreement between it and the evidence.")
    evidence: Evidence = Evidence()
    repaired: bool = False
    seen_by: str = ""
