"""A claim check: bytes never travel on the bus, a claim on them does."""

from pydantic import Field

from contracts.wire_model import WireModel


class Claim(WireModel):
    """Bytes in the store. Every read checks the sha256."""

    uri: str = Field(description="`file://…` or `s3://bucket/key`.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    media_type: str = Field(examples=["image/png"])
    size: int = Field(ge=0, description="Bytes.")
    width: int | None = Field(None, ge=1, description="Pixels, when the bytes are a picture.")
    height: int | None = Field(None, ge=1)
