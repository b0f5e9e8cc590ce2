"""Events: what happened. Published to `atelier.events` with the key `<step>.<kind>.<job id>`; anyone may bind a queue to them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from contracts.fault import Fault
from contracts.wire_model import WireModel


class EventKind(StrEnum):
    ACCEPTED = "accepted"
    PROGRESS = "progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Progress(WireModel):
    """How far a step has come."""

    current_step: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    progress_percent: int = Field(ge=0, le=100)
    estimated_seconds: int = Field(0, ge=0, description="Seconds still to go, from the steps measured so far.")
    preview: str | None = Field(None, description="A tiny JPEG, base64, when the order asked for previews.")


class Event(WireModel):
    """Something that happened to a job: at one of its steps, or (step `job`) to the whole of it."""

    kind: EventKind
    step: str = Field(description="A step's name, or `job`.")
    job_id: str
    at: datetime
    message_id: str = Field(description="The command that the event is about.")
    tenant: str | None = None
    attempt: int = 1
    worker: str | None = None
    seconds: float | None = Field(None, ge=0, description="Working time of the step.")
    queued_seconds: float | None = Field(None, ge=0, description="From the command's publication to the start of work.")
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    fault: Fault | None = None
