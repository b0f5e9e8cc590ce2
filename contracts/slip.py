"""The routing slip: the itinerary of a job, carried inside its commands. There is no orchestrator."""

from datetime import datetime
from typing import Any

from pydantic import Field

from contracts.wire_model import WireModel


class LoopBack(WireModel):
    """Steps to repeat while a condition (`gate`) is false, at most `times` times. The last of `stops` is the step with the condition."""

    stops: list["SlipStep"] = Field(min_length=1, max_length=8)
    times: int = Field(1, ge=0, le=10)
    fresh: list[str] = Field(
        default_factory=list, description="Integer variables that get a new value in each repetition, such as the seed."
    )


class SlipStep(WireModel):
    """One step of the itinerary, with its arguments. An argument takes precedence over a variable of the same name."""

    step: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    gate: str | None = Field(
        None, description="The condition: a boolean field of this step's result. The job ends after this step when it is false."
    )
    again: LoopBack | None = Field(None, description="The steps to repeat, before the job ends, when the condition is false.")
    reply_here: bool = Field(False, description="Send the reply after this step, then continue.")


class CompletedStep(WireModel):
    """An entry of the log: one step that is done."""

    step: str
    worker: str
    started_at: datetime
    seconds: float = Field(ge=0, description="The time that the step worked, without the wait in the queue.")
    device_seconds: float | None = Field(None, ge=0, description="Busy time of the device for the step. None: not measured.")


class Slip(WireModel):
    """The remaining steps, the variables so far, the log of completed steps, and what to publish on progress and failure."""

    itinerary: list[SlipStep] = Field(default_factory=list)
    variables: dict[str, Any] = Field(default_factory=dict)
    log: list[CompletedStep] = Field(default_factory=list)
    gate: str | None = Field(None, description="The condition of the current step.")
    again: LoopBack | None = Field(None, description="The loop back of the current step.")
    reply_here: bool = Field(False, description="The reply is sent after the current step.")
    answer: list[str] = Field(
        default_factory=list, description="Variables that are part of the job's result, beside the fields of the last step's result."
    )
    on_progress: SlipStep | None = Field(None, description="Published at each progress report, with `progress` added.")
    on_failure: SlipStep | None = Field(None, description="Published when the job fails for good, with `fault` added.")
    on_refusal: SlipStep | None = Field(None, description="Published when a false condition ends the job.")


def reachable_steps(slip: Slip) -> list[SlipStep]:
    """Every step that a slip may lead to: the itinerary, the loops back, and the detached steps."""
    loops = [slip.again, *(step.again for step in slip.itinerary)]
    repeated = [step for loop in loops if loop for step in loop.stops]
    detached = [step for step in (slip.on_progress, slip.on_failure, slip.on_refusal) if step]
    return [*slip.itinerary, *repeated, *detached]
