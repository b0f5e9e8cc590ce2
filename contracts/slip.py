"""The routing slip: a job's way through the workshop, carried inside the command. There is no orchestrator."""

from datetime import datetime
from typing import Any

from pydantic import Field

from contracts.carried import Carried


class Stop(Carried):
    """One stop to come: which step, and what it is told beyond the variables (an argument outranks a variable)."""

    step: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    gate: str | None = Field(None, description="A boolean field of this stop's result: the job ends here when it is false.")
    reply_here: bool = Field(False, description="Answer whoever awaits a reply after this stop, then go on.")


class Visit(Carried):
    """One stop that is done."""

    step: str
    worker: str
    started_at: datetime
    seconds: float = Field(ge=0, description="Working time, without the wait in the queue.")


class Slip(Carried):
    """The stops to come, the variables gathered so far, the log of the stops done, and what to run when the job fails."""

    itinerary: list[Stop] = Field(default_factory=list)
    variables: dict[str, Any] = Field(default_factory=dict)
    log: list[Visit] = Field(default_factory=list)
    gate: str | None = Field(None, description="The present stop's gate.")
    reply_here: bool = Field(False, description="The present stop is the reply point.")
    on_progress: Stop | None = Field(None, description="Published with `progress` merged in at each report of progress.")
    on_failure: Stop | None = Field(None, description="Published with `fault` merged in when the job fails for good.")
