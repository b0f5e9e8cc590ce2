"""Jobs as the ledger stores them, and the queries for them."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from contracts.event import Event, Progress
from contracts.fault import Fault
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

JobState = Literal["accepted", "running", "completed", "failed", "cancelled"]


def unknown_job_message(job_id: str) -> str:
    """The message for an unknown job, and for one of another tenant: a caller must not be able to tell them apart."""
    return f"no job {job_id!r} is in the ledger; a job just sent appears within moments"


class GetJob(Command):
    """Get one job with its steps."""

    job_id: str = Field(max_length=255)


class ListJobs(Command):
    """List jobs, the latest first. `before`: only jobs created before that time, for the next page."""

    state: JobState | None = None
    tenant: str | None = Field(None, max_length=255)
    words: str | None = Field(None, min_length=1, max_length=200, description="Text to find in the job's texts, in any case, or in its id.")
    before: datetime | None = None
    pictures: bool = Field(False, description="Only jobs whose result has pictures.")
    limit: int = Field(50, ge=1, le=500)


class GetJobEvents(Command):
    """Get the events of a job, in the order of their publication."""

    job_id: str = Field(max_length=255)


class ClaimJob(Command):
    """Reserve a job id for a request: the first request owns the id. The sha256 is that of the request's body."""

    job_id: str = Field(max_length=255)
    kind: str = Field(max_length=64)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: str | None = Field(None, max_length=255, description="The tenant of the job.")
    generation_id: int | None = Field(None, ge=0, lt=2**63, description="Also reserved for the tenant, unless another one has it.")
    backend: str = Field("", max_length=2048, description="The backend that the generation id is of, as the order names it.")


class JobClaimed(Result):
    """The owner of the id. `first`: the id was not reserved before; `accepted`: the job's first command is known to be published."""

    job_id: str
    sha256: str
    first: bool
    accepted: bool


class StepRecord(WireModel):
    """The state of one step of a job, from its events."""

    step: str
    state: JobState
    at: datetime = Field(description="When the last event of the step was published.")
    worker: str | None = None
    attempt: int = 1
    seconds: float | None = None
    queued_seconds: float | None = None
    device_seconds: float | None = Field(None, description="Busy time of the device for the step. None: not measured.")
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    fault: Fault | None = None


class Job(Result):
    """One job."""

    job_id: str
    kind: str | None = None
    state: JobState
    tenant: str | None = None
    itinerary: list[str] = Field(default_factory=list)
    prompt: str | None = Field(None, description="The first 200 characters of the order's prompt or question, as far as they are recorded.")
    step: str | None = Field(None, description="The step of the latest event.")
    created_at: datetime
    updated_at: datetime
    result: dict[str, Any] | None = None
    fault: Fault | None = None
    steps: list[StepRecord] = Field(default_factory=list, description="In the order in which they started. Empty in lists.")
    device_seconds: float | None = Field(None, description="The sum over the steps. None in lists, and where none is measured.")


class Jobs(Result):
    """One page of jobs, the latest first."""

    jobs: list[Job]


class JobEvents(Result):
    """The events of one job."""

    events: list[Event] = Field(description="Empty when the job is unknown.")
