"""The validate step (stage 1): does an image suit its advertisement?

The input is given by ids, which the worker looks up in the source system's tables, or in full: a claim and a text.
"""

from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field

from contracts.claim import Claim
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

RecordId = Annotated[str, Field(max_length=255)]
COLOR_WORDS = {"light": "ffffff", "dark": "000000"}
"""What the source system's prompt calls the colours of a text."""


def color_digits(color: Any) -> Any:
    """Six hex digits for `light` and `dark`; any other value as it is."""
    return COLOR_WORDS.get(color.strip().lower(), color) if isinstance(color, str) else color


DEFAULT_VERDICT_DESCRIPTION = (
    "The model is asked again when its answer holds no verdict; after the last time the result is the source system's default verdict."
)


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
    default_verdict: bool = Field(False, description=DEFAULT_VERDICT_DESCRIPTION)


class FontRecommendation(WireModel):
    """A font that would suit the image. `font_name` and `reasoning` are empty where the model's answer has none."""

    font_style: str
    font_name: str
    font_size_category: str
    font_color_hex: str
    reasoning: str


class OverlayFont(FontRecommendation):
    """A recommended font; also in the three fields `style`, `size` and `color` of the source system's prompt."""

    model_config = ConfigDict(populate_by_name=True)

    font_style: str = Field(validation_alias=AliasChoices("font_style", "style"))
    font_name: str = ""
    font_size_category: str = Field(validation_alias=AliasChoices("font_size_category", "size"))
    font_color_hex: Annotated[str, BeforeValidator(color_digits)] = Field(validation_alias=AliasChoices("font_color_hex", "color"))
    reasoning: str = ""


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
    defaulted: bool = Field(False, description="The model's answers held no verdict: these are the default values.")
    seen_by: str = Field(
        "",
        description="The name of the model. It is not called `model`, because it becomes a variable, and the image command has a `model`.",
    )
    device_seconds: float | None = Field(None, ge=0, description="Busy time of the device for this request; None: not known.")
