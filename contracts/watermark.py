"""The watermark step: draw the artist's signature on every image of an order."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from contracts.claim import Claim
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

SignaturePosition = Literal["top-left", "top-center", "top-right", "bottom-left", "bottom-center", "bottom-right"]
SignatureSize = Literal["small", "medium", "large"]


def normalize_opacity(value: object) -> object:
    """Convert the older scale (integers from 0 to 255) to the newer one (0 to 1). An integer above 1 is on the older scale."""
    return value / 255 if isinstance(value, int) and not isinstance(value, bool) and 1 < value <= 255 else value


class Signature(WireModel):
    """A text or an image. With neither, nothing is drawn and only the metadata is written."""

    text: str | None = Field(None, max_length=200)
    image_uri: str | None = Field(None, description="`s3://`, `https://` or `file://`; used instead of the text.")
    position: SignaturePosition = "bottom-right"
    size: SignatureSize = Field("medium", description="Fraction of the image's width: small .15, medium .25, large .35.")
    opacity: Annotated[float, BeforeValidator(normalize_opacity), Field(ge=0, le=1)] = 0.7


class Watermark(Command):
    """Sign images."""

    images: list[Claim] = Field(min_length=1, max_length=16)
    signature: Signature = Signature()
    artist: str | None = Field(None, max_length=200)
    metadata: dict[str, object] = Field(default_factory=dict, description="Written into the PNG metadata, beside artist and job.")


class WatermarkDone(Result):
    """Claims on the signed images."""

    images: list[Claim]
