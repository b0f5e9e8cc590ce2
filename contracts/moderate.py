"""The moderate step: do texts and pictures hold what an installation does not allow?

Words are compared with the operator's list, pictures are shown to the checkers that the worker is configured with. An input that no
checker is configured for is an error, because a job must not pass unchecked.
"""

from typing import Annotated, Literal

from pydantic import Field

from contracts.claim import Claim
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

MAX_TEXT_CHARS = 32_000
CheckerName = Literal["word-list", "nudenet", "safety-checker", "image-step"]
"""`safety-checker`: the worker's MODERATION_CHECKER. `image-step`: what the image step found with IMAGE_SAFETY_CHECKER."""
InputName = Literal["prompt", "text", "texts", "image", "images", "image_urls"]
"""The fields of the command that are checked."""
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
Address = Annotated[str, Field(max_length=2048)]


class Moderate(Command):
    """Check texts and pictures: everything that is given, and at least one. On a slip, null as an argument leaves a variable out."""

    images: list[Claim] = Field(default_factory=list, max_length=16, description="The pictures on a routing slip; each is checked.")
    image: Claim | None = Field(None, description="One more picture.")
    image_urls: list[Address] = Field(
        default_factory=list, max_length=16, description="Addresses of further pictures: `https://`, or `s3://` and the like where allowed."
    )
    text: Text | None = Field(None, description="On a slip: what the text step wrote, or the copy of an advertisement.")
    prompt: Text | None = Field(None, description="What a picture is drawn from.")
    texts: list[Text] = Field(default_factory=list, max_length=64, description="Further texts, each checked by itself.")
    flagged: list[bool] = Field(
        default_factory=list, max_length=16, description="On a slip: what the image step's safety checker found in each of `images`."
    )


class Finding(WireModel):
    """What a checker found in one input, the highest score of each label, over all frames of a picture.

    `index`: the place in a list of texts or images, from 0.
    """

    input: InputName
    index: int = Field(0, ge=0)
    label: str = Field(description="A category of the word list, a label of NudeNet such as `buttocks-exposed`, or `unsafe`.")
    score: float = Field(ge=0, le=1, description="1 for a word of the list and for a safety checker, which know yes and no alone.")
    flagged: bool = Field(description="The score reaches the label's threshold (MODERATION_THRESHOLDS).")
    checker: CheckerName


class ModerateDone(Result):
    """`allowed` is the condition of an itinerary. No field is called `flagged`, which is a variable of the image step."""

    allowed: bool = Field(description="No finding is flagged.")
    moderation: list[Finding] = Field(description="The findings, in the order of the inputs.")
    checked_by: dict[str, list[str]] = Field(description="The checkers that saw an input, and the labels that each can find.")
    device_seconds: float | None = Field(None, ge=0, description="Busy time of the device for this request; None: not known.")
