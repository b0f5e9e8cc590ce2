"""Verdicts on a picture: what a model may say, bounded so that its saying always ends, and what can be measured beside it.

The opinions are the schemas that constrain decoding. Their texts have a pattern and no `maxLength`, their lists a limit.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from contracts.wire_model import WireModel


def bounded_text(max_length: int) -> Any:
    """One to `longest` characters, no control character, no quote and no backslash: nothing in it needs an escape in JSON."""
    return Field(pattern=rf"^[^\x00-\x1f\x22\x5c\x7f]{{1,{max_length}}}$")


Analysis = Annotated[str, bounded_text(240)]
Remark = Annotated[str, bounded_text(100)]
Remarks = Annotated[list[Remark], Field(max_length=4)]
Score = Annotated[float, Field(ge=0, le=1)]


class VerdictSchema(BaseModel):
    """What a model says, and nothing besides. Every field is said, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FontVerdictSchema(VerdictSchema):
    """Lettering that would suit the picture."""

    font_style: Literal["serif", "sans-serif", "bold", "italic"]
    font_name: Annotated[str, bounded_text(40)]
    font_size_category: Literal["small", "medium", "large"]
    font_color_hex: Annotated[str, Field(pattern=r"^[0-9a-f]{6}$")]
    reasoning: Annotated[str, bounded_text(160)]


class ImageVerdictSchema(VerdictSchema):
    """Whether a picture suits its advertisement."""

    is_valid: bool
    image_quality_ok: bool
    relevance_score: Score
    analysis: Analysis
    issues: Remarks
    recommendations: Remarks
    font_recommendation: FontVerdictSchema


class AdVerdictSchema(VerdictSchema):
    """Whether a finished advertisement may go out. `occlusion`: something that matters is covered."""

    on_brief: bool
    occlusion: bool
    contrast_ok: bool
    cta_present: bool
    analysis: Analysis
    issues: Remarks


class Region(WireModel):
    """A rectangle as shares of the picture's width and height, from its upper left corner."""

    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)
    width: float = Field(gt=0, le=1)
    height: float = Field(gt=0, le=1)


class Evidence(WireModel):
    """What was measured on the picture itself. A value that could not be measured is absent."""

    contrast_ratio: float | None = Field(None, ge=1, le=21, description="WCAG 2 contrast of the text against what lies behind it.")
    contrast_required: float | None = Field(None, description="4.5, or 3 for large text.")
    text_color: str | None = Field(None, description="Given or found; 6 hex digits.")
    background_color: str | None = None
    covered_share: float | None = Field(None, ge=0, le=1, description="Share of the protected region that the overlay covers.")
    covered_by: Literal["pixels", "geometry"] | None = Field(
        None, description="Pixels that differ from the bare picture, or the boxes alone."
    )
