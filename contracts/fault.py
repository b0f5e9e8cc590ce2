"""A fault: why something could not be done, in words a machine and a person can read."""

from pydantic import Field

from contracts.wire_model import WireModel


class Fault(WireModel):
    """The cause of a failure. It stands on the dead letter, in the `failed` event, in the reply and in the webhook."""

    code: str = Field(
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="Kebab-case, never reused for another meaning.", examples=["lora-missing"]
    )
    message: str
    step: str
    attempts: int = Field(1, ge=1)
    exception_type: str | None = None
