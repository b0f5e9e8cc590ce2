"""A fault: why a command failed, as a code for programs and a message for people."""

from pydantic import Field

from contracts.wire_model import WireModel


class Fault(WireModel):
    """The cause of a failure. It is in the dead letter, the `failed` event, the reply and the webhook."""

    code: str = Field(
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="In kebab-case; its meaning never changes.", examples=["lora-missing"]
    )
    message: str
    step: str
    attempts: int = Field(1, ge=1)
    exception_type: str | None = None
