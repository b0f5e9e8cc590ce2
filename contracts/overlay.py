"""The overlay step: an advertisement's copy laid over its picture, where there is room for it and where it can be read."""

from typing import Any, Literal

from pydantic import Field

from contracts.claim import Claim
from contracts.validate import FontRecommendation, RecordId
from contracts.verdict import Region
from contracts.wire import Command, Result

AlignX = Literal["left", "center", "right"]
AlignY = Literal["top", "middle", "bottom"]


class Overlay(Command):
    """Lay a text over the first picture. What is not said is chosen: the place by free space and contrast, the colour by contrast."""

    images: list[Claim] = Field(min_length=1, max_length=16, description="The text goes on the first; the others are left behind.")
    text: str = Field(min_length=1, max_length=500)
    font_recommendation: FontRecommendation | None = Field(None, description="As the validate step recommends.")
    x_align: AlignX | None = None
    y_align: AlignY | None = None
    text_color: str | None = Field(None, pattern=r"^#?[0-9A-Fa-f]{6}([0-9A-Fa-f]{2})?$", description="RRGGBB or RRGGBBAA.")
    overlay_color: str | None = Field(None, pattern=r"^#?[0-9A-Fa-f]{6}([0-9A-Fa-f]{2})?$", description="A plate behind the text.")
    margin: int = Field(8, ge=0, le=200, description="Pixels.")
    protected_region: Region | None = Field(None, description="Where no text should stand, such as the product.")
    job_variants_id: RecordId | None = Field(None, description="With it the layout is kept in the source system's table.")
    proposal_id: RecordId | None = None


class OverlayDone(Result):
    """`layout` and the ratios are what the source system's `overlay_layouts` holds."""

    images: list[Claim] = Field(description="The picture with its text.")
    bare_image: Claim = Field(description="The picture without.")
    overlay_id: str
    text_region: Region
    text_color: str = Field(description="RRGGBB.")
    large_text: bool
    contrast_ratio: float = Field(ge=1, le=21, description="WCAG 2, of the text against the worst tenth of what lies behind it.")
    contrast_required: float = Field(description="4.5, or 3 for large text.")
    layout: dict[str, Any]
