"""The claim check: a message carries a claim on stored bytes, never the bytes."""

from typing import Literal

from pydantic import Field

from contracts.wire_model import WireModel

ImageFormat = Literal["png", "jpeg", "webp"]
"""The formats in which pictures are written."""


class Claim(WireModel):
    """A reference to bytes in the claim store. Every read checks the sha256."""

    uri: str = Field(description="`file://…` or `s3://bucket/key`.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    media_type: str = Field(examples=["image/png"])
    size: int = Field(ge=0, description="Bytes.")
    width: int | None = Field(None, ge=1, description="Pixels, when the bytes are an image.")
    height: int | None = Field(None, ge=1)
