"""The overlay step: draw the text of an advertisement on its image, where there is free space and enough contrast."""

from typing import Any, Literal

from pydantic import Field

from contracts.claim import Claim
from contracts.validate import OverlayFont, RecordId
from contracts.verdict import HexColor, Region
from contracts.wire import Command, Result

AlignX = Literal["left", "center", "right"]
AlignY = Literal["top", "middle", "bottom"]


class Overlay(Command):
    """Draw a text on the first image. By default the position is chosen by free space and contrast, the colour by contrast."""

    images: list[Claim] = Field(
        min_length=1, max_length=16, description="The text is drawn on the first; the result leaves out the others."
    )
    text: str = Field(min_length=1, max_length=500)
    font_recommendation: OverlayFont | None = Field(None, description="The recommendation of the validate step.")
    x_align: AlignX | None = None
    y_align: AlignY | None = None
    text_color: HexColor | None = Field(None, description="RRGGBB or RRGGBBAA.")
    overlay_color: HexColor | None = Field(None, description="The colour of a plate behind the text.")
    margin: int = Field(8, ge=0, le=200, description="Pixels.")
    protected_region: Region | None = Field(None, description="Where no text should be, such as the product.")
    job_variants_id: RecordId | None = Field(None, description="With it the layout is stored in the source system's table.")
    proposal_id: RecordId | None = None


class OverlayDone(Result):
    """`layout` and the ratios are the values in the source system's table `overlay_layouts`."""

    images: list[Claim] = Field(description="The image with its text.")
    bare_image: Claim = Field(description="The image without its text.")
    overlay_id: str
    text_region: Region
    text_color: str = Field(description="RRGGBB.")
    large_text: bool
    contrast_ratio: float = Field(ge=1, le=21, description="WCAG 2 contrast of the text against the worst tenth of its background.")
    contrast_required: float = Field(description="4.5, or 3 for large text.")
    layout: dict[str, Any]
    text_left_out: str = Field("", description="Emoji and other symbols of the text, which are not drawn.")
