"""A word to every process at once, on the fanout exchange `atelier.control`."""

from pydantic import Field

from contracts.wire_model import WireModel


class Control(WireModel):
    """What every process is to do. One that it does not know is ignored."""

    cancel: str = Field(description="The id of a job that nobody wants any more.", examples=["generation-500"])
