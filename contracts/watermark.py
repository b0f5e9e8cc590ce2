"""The watermark step: the artist's signature on every picture of an order."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from contracts.claim import Claim
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

SignaturePosition = Literal["top-left", "top-center", "top-right", "bottom-left", "bottom-center", "bottom-right"]
SignatureSize = Literal["small", "medium", "large"]


def normalize_opacity(value: object) -> object:
    """The older scale is an integer from 0 to 255, the newer a share from 0 to 1. An integer above 1 is of the older."""
    return value / 255 if isinstance(value, int) and not isinstance(value, bool) and 1 < value <= 255 else value


class Signature(WireModel):
    """A text or a picture. With neither there is nothing to sign and the pictures pass unsigned, their metadata written."""

    text: str | None = Field(None, max_length=200)
    image_uri: str | None = Field(None, description="`s3://`, `https://` or `file://`; outranks the text.")
    position: SignaturePosition = "bottom-right"
    size: SignatureSize = Field("medium", description="Share of the picture's width: small .15, medium .25, large .35.")
    opacity: Annotated[float, BeforeValidator(normalize_opacity), Field(ge=0, le=1)] = 0.7


class Watermark(Command):
    images: list[Claim] = Field(min_length=1, max_length=16)
    signature: Signature = Signature()
    artist: str | None = Field(None, max_length=200)
    metadata: dict[str, object] = Field(default_factory=dict, description="Written into the PNG beside artist and job.")


class WatermarkDone(Result):
    images: list[Claim]
