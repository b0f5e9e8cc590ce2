"""The control messages: broadcasts to every process, on the fanout exchange `atelier.control`."""

from pydantic import Field

from contracts.wire_model import WireModel

REVOKED_TYPE = "session-revoked.v1"
"""The AMQP type of SessionRevoked, by which workers ignore it."""


class Control(WireModel):
    """An instruction to every process. A process ignores one that it does not know."""

    cancel: str = Field(description="The id of the job to cancel.", examples=["generation-500"])


class SessionRevoked(WireModel):
    """A session of the console was logged out: every gateway refuses its cookies."""

    session: str = Field(description="The id of the session.", max_length=64)
    ends: float = Field(description="When the session would have ended, as Unix time.", ge=0, allow_inf_nan=False)
