"""The watermark step: draw the artist's signature on every image of an order."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from contracts.claim import Claim, ImageFormat
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

SignaturePosition = Literal["top-left", "top-center", "top-right", "bottom-left", "bottom-center", "bottom-right"]
SignatureSize = Literal["small", "medium", "large"]


def normalize_opacity(value: float) -> float:
    """The fraction, from 0 to 1. A whole number above 1 is of 255; 1 itself is the fraction, fully opaque, since 1 of 255 is invisible.

    Raises ValueError for any other number.
    """
    if 0 <= value <= 1:
        return value
    if not (1 < value <= 255 and value.is_integer()):
        raise ValueError("an opacity is a fraction from 0 to 1, or a whole number from 2 to 255")
    return value / 255


Opacity = Annotated[
    float,
    Field(description="A fraction from 0 to 1, or a whole number from 2 to 255, which is a part of 255; 1 is fully opaque."),
    AfterValidator(normalize_opacity),
]


class Signature(WireModel):
    """A text or an image. With neither, nothing is drawn and only the metadata is written."""

    text: str | None = Field(None, max_length=200)
    image_uri: str | None = Field(None, description="`s3://`, `gs://`, `https://` or `file://`; used instead of the text.")
    position: SignaturePosition = "bottom-right"
    size: SignatureSize = Field("medium", description="Fraction of the image's width: small .15, medium .25, large .35.")
    opacity: Opacity = 0.7
    required: bool = Field(True, description="False: when the image is missing, draw the text, or nothing.")


class Watermark(Command):
    """Sign images."""

    images: list[Claim] = Field(min_length=1, max_length=16)
    signature: Signature = Signature()
    artist: str | None = Field(None, max_length=200)
    metadata: dict[str, object] = Field(default_factory=dict, description="Written into the file's metadata, beside artist and job.")
    output_format: ImageFormat = Field("png", description="Of the signed images, whatever the format of `images` is.")
    quality: int | None = Field(None, ge=1, le=100, description="Of JPEG and WebP; None: 90.")

    @model_validator(mode="after")
    def _check_quality(self) -> Self:
        if self.quality is not None and self.output_format == "png":
            raise ValueError("a PNG has no quality: name the output_format jpeg or webp")
        return self


class WatermarkDone(Result):
    """Claims on the signed images."""

    images: list[Claim]
    thumbnails: list[Claim] = Field(default_factory=list, description="A small JPEG of each signed image, for lists.")
    signature_missing: bool = Field(
        False, description="The signature's image was missing and not required, or its text had nothing but what is left out."
    )
    signature_left_out: str = Field("", description="Emoji and other symbols of the signature's text, which are not drawn.")
