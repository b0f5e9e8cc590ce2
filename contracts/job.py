"""A job as the ledger keeps it, and how to ask for one."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from contracts.event import Event, Progress
from contracts.fault import Fault
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

JobState = Literal["accepted", "running", "completed", "failed", "cancelled"]


def unknown_job_message(job_id: str) -> str:
    """What is said of a job that is not there, and of one that is not the asker's: nobody can tell the two apart."""
    return f"no job {job_id!r} is in the ledger; a job just sent appears within moments"


class GetJob(Command):
    job_id: str = Field(max_length=255)


class ListJobs(Command):
    """The youngest first. `before`: only jobs created before that moment, to turn the page."""

    state: JobState | None = None
    tenant: str | None = Field(None, max_length=255)
    words: str | None = Field(None, min_length=1, max_length=200, description="Stand in the order's texts, in any case, or in its id.")
    before: datetime | None = None
    limit: int = Field(50, ge=1, le=500)


class GetJobEvents(Command):
    """What happened to a job, in the order in which it was said."""

    job_id: str = Field(max_length=255)


class ClaimJob(Command):
    """Take a job's id for a request: whoever comes first decides what the id means. The sha256 is that of the request's body."""

    job_id: str = Field(max_length=255)
    kind: str = Field(max_length=64)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: str | None = Field(None, max_length=255, description="Whose job it will be.")


class JobClaimed(Result):
    """What the id means. `first`: it meant nothing before; `accepted`: the job's first command is known to be sent."""

    job_id: str
    sha256: str
    first: bool
    accepted: bool


class StepRecord(WireModel):
    """What is known of one step of a job, from its events."""

    step: str
    state: JobState
    at: datetime = Field(description="When the last event of the step was published.")
    worker: str | None = None
    attempt: int = 1
    seconds: float | None = None
    queued_seconds: float | None = None
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    fault: Fault | None = None


class Job(Result):
    job_id: str
    kind: str | None = None
    state: JobState
    tenant: str | None = None
    itinerary: list[str] = Field(default_factory=list)
    created_at: datetime
    updated_at: datetime
    result: dict[str, Any] | None = None
    fault: Fault | None = None
    steps: list[StepRecord] = Field(default_factory=list, description="In the order in which they began. Left out of lists.")


class Jobs(Result):
    jobs: list[Job]


class JobEvents(Result):
    events: list[Event] = Field(description="None when nothing is known of the job.")
