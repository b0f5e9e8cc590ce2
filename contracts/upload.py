"""The upload step: copy images to the public store."""

from pydantic import Field

from contracts.claim import Claim
from contracts.wire import Command, Result


class Upload(Command):
    """Upload images."""

    images: list[Claim] = Field(min_length=1, max_length=16)
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="The value of `{name}` in the key template.", examples=["gen-500"]
    )


class UploadDone(Result):
    """The uploaded images and their public addresses."""

    files: list[Claim] = Field(description="Claims on the uploaded images.")
    result_url: str = Field(description="The public URL of the first image.")
    result_urls: list[str]
