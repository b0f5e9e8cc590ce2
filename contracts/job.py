"""A job as the ledger keeps it, and how to ask for one."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from contracts.carried import Carried
from contracts.event import Progress
from contracts.fault import Fault
from contracts.wire import Command, Result

State = Literal["accepted", "running", "completed", "failed", "cancelled"]


class GetJob(Command):
    job_id: str = Field(max_length=255)


class ListJobs(Command):
    """The youngest first. `before`: only jobs created before that moment, to turn the page."""

    state: State | None = None
    tenant: str | None = Field(None, max_length=255)
    before: datetime | None = None
    limit: int = Field(50, ge=1, le=500)


class StepRecord(Carried):
    """What is known of one step of a job, from its events."""

    step: str
    state: State
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
    state: State
    tenant: str | None = None
    itinerary: list[str] = Field(default_factory=list)
    created_at: datetime
    updated_at: datetime
    result: dict[str, Any] | None = None
    fault: Fault | None = None
    steps: list[StepRecord] = Field(default_factory=list, description="In the order in which they began. Left out of lists.")


class Jobs(Result):
    jobs: list[Job]
