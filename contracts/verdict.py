"""Verdicts on an image: the schemas that constrain a model's output, and the measurements beside it.

Each schema bounds its output, so that generation always ends: texts by a pattern (not `maxLength`), lists by a maximum length.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from contracts.wire_model import WireModel


def bounded_text(max_length: int, min_length: int = 1) -> Any:
    """`min_length` to `max_length` characters without control characters, quotes and backslashes: none needs an escape in JSON."""
    return Field(pattern=rf"^[^\x00-\x1f\x22\x5c\x7f]{{{min_length},{max_length}}}$")


Analysis = Annotated[str, bounded_text(240)]
Remark = Annotated[str, bounded_text(100)]
Remarks = Annotated[list[Remark], Field(max_length=4)]
Score = Annotated[float, Field(ge=0, le=1)]
HexColor = Annotated[str, Field(pattern=r"^#?[0-9A-Fa-f]{6}([0-9A-Fa-f]{2})?$")]
"""RRGGBB or RRGGBBAA, with or without `#`."""


class VerdictSchema(BaseModel):
    """The output of a model: all fields, in this order, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class FontVerdictSchema(VerdictSchema):
    """A font that would suit the image."""

    font_style: Literal["serif", "sans-serif", "bold", "italic"]
    font_name: Annotated[str, bounded_text(40)]
    font_size_category: Literal["small", "medium", "large"]
    font_color_hex: Annotated[str, Field(pattern=r"^[0-9a-f]{6}$")]
    reasoning: Annotated[str, bounded_text(160)]


class FontAnswer(FontVerdictSchema):
    """The font of an answer that was not constrained: the source system asks for style, size and colour only."""

    font_name: Annotated[str, bounded_text(40, 0)] = ""
    reasoning: Annotated[str, bounded_text(160, 0)] = ""


class ImageOpinion(VerdictSchema):
    """Whether an image suits its advertisement, without the font."""

    is_valid: bool
    image_quality_ok: bool
    relevance_score: Score
    analysis: Analysis
    issues: Remarks
    recommendations: Remarks


class ImageVerdictSchema(ImageOpinion):
    """Whether an image suits its advertisement."""

    font_recommendation: FontVerdictSchema


class ImageAnswer(ImageOpinion):
    """What is accepted of an answer that was not constrained: the source system's prompt without a text asks for no font."""

    font_recommendation: FontAnswer | None = None


class AdVerdictSchema(VerdictSchema):
    """Whether a finished advertisement may be published. `occlusion`: something important is covered."""

    on_brief: bool
    occlusion: bool
    contrast_ok: bool
    cta_present: bool
    analysis: Analysis
    issues: Remarks


class Region(WireModel):
    """A rectangle in fractions of the image's width and height, from its upper left corner."""

    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)
    width: float = Field(gt=0, le=1)
    height: float = Field(gt=0, le=1)


class TextLine(WireModel):
    """A line of text that was read in the image."""

    text: str
    region: Region
    confidence: float = Field(ge=0, le=1)
    cer: float | None = Field(
        None, ge=0, le=1, description="Edit distance to the closest part of the ad copy, by the line's length. Absent: it is another text."
    )


class Evidence(WireModel):
    """Measurements on the image. A value that could not be measured is absent."""

    contrast_ratio: float | None = Field(None, ge=1, le=21, description="WCAG 2 contrast of the text against its background.")
    contrast_required: float | None = Field(None, description="4.5, or 3 for large text.")
    text_color: str | None = Field(None, description="Given or measured; 6 hex digits.")
    background_color: str | None = None
    covered_share: float | None = Field(None, ge=0, le=1, description="The fraction of the protected region that the overlay covers.")
    covered_by: Literal["pixels", "geometry"] | None = Field(
        None, description="The method: pixels that differ from the image without text, or the boxes alone."
    )
    ocr_model: str | None = Field(None, description="The model that read the text.")
    text_read: str | None = Field(None, description="The text that was read in the text's region, a line of the image on each line.")
    character_error_rate: float | None = Field(
        None,
        ge=0,
        description="Edit distance between the text that was read and the ad copy, by the length of the copy. Characters, digits and marks "
        "are compared, without case.",
    )
    text_lines: list[TextLine] | None = Field(None, description="At most 32 lines, those of the ad copy first.")
    calls_to_action: list[str] | None = Field(None, description="The words of OCR_CALLS_TO_ACTION that were read anywhere in the image.")
    text_height: float | None = Field(None, ge=0, description="Pixels: the height of the lowest line of the ad copy.")
    text_height_share: float | None = Field(None, ge=0, le=1, description="The same as a fraction of the image's height.")
    text_too_small: bool | None = Field(None, description="Below a fortieth of the image's height, or below 14 pixels.")
    unknown_characters: str | None = Field(
        None, description="Characters of the ad copy that the model cannot read; then the text is not compared."
    )
    text_unread: str | None = Field(None, description="The code of the failure when the text could not be read, such as `ocr-too-costly`.")
