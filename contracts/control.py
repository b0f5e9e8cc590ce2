"""The control message: a broadcast to every process, on the fanout exchange `atelier.control`."""

from pydantic import Field

from contracts.wire_model import WireModel


class Control(WireModel):
    """An instruction to every process. A process ignores one that it does not know."""

    cancel: str = Field(description="The id of the job to cancel.", examples=["generation-500"])
