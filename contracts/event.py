"""Events about jobs and their steps, published to `atelier.events` with the key `<step>.<kind>.<job id>`. Anyone may bind a queue."""

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
    """How much of a step is done."""

    current_step: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    progress_percent: int = Field(ge=0, le=100)
    estimated_seconds: int = Field(0, ge=0, description="Seconds remaining, estimated from the steps so far.")
    preview: str | None = Field(None, description="A small JPEG in base64, when the command asked for previews.")


class Event(WireModel):
    """A change of one step of a job, or of the whole job (step `job`)."""

    kind: EventKind
    step: str = Field(description="A step's name, or `job`.")
    job_id: str
    at: datetime
    message_id: str = Field(description="The message id of the command that the event is about.")
    tenant: str | None = None
    attempt: int = 1
    worker: str | None = None
    seconds: float | None = Field(None, ge=0, description="The time that the step worked, without the wait in the queue.")
    queued_seconds: float | None = Field(None, ge=0, description="From the publication of the command to the start of its work.")
    device_seconds: float | None = Field(
        None, ge=0, description="Busy time of the device for this step, also of one that failed or was cancelled. None: not measured."
    )
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    fault: Fault | None = None
