"""Who is there: what a process of actors says of itself when somebody asks all of them at once."""

from datetime import datetime
from typing import Any

from pydantic import Field

from contracts.wire_model import WireModel


class DiscoveryRequest(WireModel):
    """Who is there? Asked on the fanout exchange `atelier.control`; each process answers to `reply_to`."""

    who: bool = True


class StepStatus(WireModel):
    """One step that the process serves. `reason`: why it takes no work now, since `since`."""

    step: str
    queue: str
    prefetch: int
    in_hand: int = 0
    done: int = Field(0, description="Deliveries that are over, since the process began.")
    per_minute: float | None = Field(None, description="Over the last minute in which somebody asked.")
    reason: str | None = None
    since: datetime | None = None


class WorkerStatus(WireModel):
    worker: str
    began: datetime
    steps: list[StepStatus]
    parts: dict[str, str | None] = Field(default_factory=dict, description="Each part of the process, and what is wrong with it.")
    engines: dict[str, dict[str, Any]] = Field(default_factory=dict, description="By step, what its model process counts.")
