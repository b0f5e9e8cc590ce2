"""The upload step: pictures to the place where the outside world reads them."""

from pydantic import Field

from contracts.claim import Claim
from contracts.wire import Command, Result


class Upload(Command):
    images: list[Claim] = Field(min_length=1, max_length=16)
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="Fills `{name}` in the key template.", examples=["gen-500"]
    )


class UploadDone(Result):
    files: list[Claim] = Field(description="Where the pictures lie now.")
    result_url: str = Field(description="The first picture, as the outside world reads it.")
    result_urls: list[str]
