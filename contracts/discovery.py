"""Discovery: the status that each worker process reports when a client asks all of them."""

from datetime import datetime
from typing import Any

from pydantic import Field

from contracts.wire_model import WireModel


class DiscoveryRequest(WireModel):
    """Ask every worker for its status, on the fanout exchange `atelier.control`; each replies to `reply_to`."""

    who: bool = True


class StepStatus(WireModel):
    """One step that the process serves. `reason`: why its consumer is paused, `since` when; None while it consumes."""

    step: str
    queue: str
    prefetch: int
    in_hand: int = 0
    done: int = Field(0, description="Deliveries finished since the process started.")
    per_minute: float | None = Field(
        None, description="Deliveries per minute, from the status requests of the last minute; None at the first request."
    )
    reason: str | None = None
    since: datetime | None = None


class WorkerStatus(WireModel):
    """The reply of one worker process."""

    worker: str
    began: datetime
    steps: list[StepStatus]
    parts: dict[str, str | None] = Field(
        default_factory=dict, description="Each dependency of the process, and its fault; None when it is healthy."
    )
    engines: dict[str, dict[str, Any]] = Field(default_factory=dict, description="By step, the statistics of its engine process.")
