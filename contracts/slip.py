"""The routing slip: a job's way through the workshop, carried inside the command. There is no orchestrator."""

from datetime import datetime
from typing import Any

from pydantic import Field

from contracts.wire_model import WireModel


class LoopBack(WireModel):
    """What to do once more when a gate is shut: these stops, the last of which is the one with the gate; at most so many times."""

    stops: list["SlipStep"] = Field(min_length=1, max_length=8)
    times: int = Field(1, ge=0, le=10)
    fresh: list[str] = Field(default_factory=list, description="Integer variables that get another value, such as the seed.")


class SlipStep(WireModel):
    """One stop to come: which step, and what it is told beyond the variables (an argument outranks a variable)."""

    step: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    gate: str | None = Field(None, description="A boolean field of this stop's result: the job ends here when it is false.")
    again: LoopBack | None = Field(None, description="When the gate is shut, this is tried before the job ends.")
    reply_here: bool = Field(False, description="Answer whoever awaits a reply after this stop, then go on.")


class CompletedStep(WireModel):
    """One stop that is done."""

    step: str
    worker: str
    started_at: datetime
    seconds: float = Field(ge=0, description="Working time, without the wait in the queue.")


class Slip(WireModel):
    """The stops to come, the variables gathered so far, the log of the stops done, and what to run when the job fails."""

    itinerary: list[SlipStep] = Field(default_factory=list)
    variables: dict[str, Any] = Field(default_factory=dict)
    log: list[CompletedStep] = Field(default_factory=list)
    gate: str | None = Field(None, description="The present stop's gate.")
    again: LoopBack | None = Field(None, description="The present stop's way back.")
    reply_here: bool = Field(False, description="The present stop is the reply point.")
    answer: list[str] = Field(default_factory=list, description="Variables that stand in the job's result beside the last stop's own.")
    on_progress: SlipStep | None = Field(None, description="Published with `progress` merged in at each report of progress.")
    on_failure: SlipStep | None = Field(None, description="Published with `fault` merged in when the job fails for good.")
    on_refusal: SlipStep | None = Field(None, description="Published when a shut gate ends the job.")


def reachable_steps(slip: Slip) -> list[SlipStep]:
    """Every stop that a slip may ever lead to."""
    ways = [slip.again, *(stop.again for stop in slip.itinerary)]
    back = [stop for again in ways if again for stop in again.stops]
    aside = [stop for stop in (slip.on_progress, slip.on_failure, slip.on_refusal) if stop]
    return [*slip.itinerary, *back, *aside]
