"""The rules of the routing slip, pure: its variables after a step, and the next command."""

import hashlib
from typing import Any

from contracts.slip import CompletedStep, Slip, SlipStep
from contracts.steps import COMMANDS

COMMAND_FIELDS = frozenset(name for command in COMMANDS.values() for name in command.model_fields)
"""What the commands of a slip can read of its variables."""


def advance(slip: Slip, result: dict[str, Any], completed: CompletedStep) -> Slip:
    """The slip after a step: the result's fields are merged into the variables, `completed` is appended to the log.

    Only fields that some command reads, or that the slip's answer names, become variables: the others would be carried by every later
    command. The device seconds of a step are in the log: as a variable, those of one step would look like those of the next.

    When the step's condition is not met and the slip can loop back, the steps to repeat come before the remaining ones.
    """
    carried = COMMAND_FIELDS.union(slip.answer) - {"device_seconds"}
    variables = slip.variables | {name: value for name, value in result.items() if name in carried}
    back = _loop_back_changes(slip, variables) if is_refused(slip, result) else {}
    return slip.model_copy(update={"variables": variables, "log": [*slip.log, completed]} | back)


def is_finished(slip: Slip | None, result: dict[str, Any]) -> bool:
    """True when no step is left, or the current step's condition is not met and the slip cannot loop back."""
    if slip is None:
        return True
    return not _can_loop_back(slip) if is_refused(slip, result) else not slip.itinerary


def is_refused(slip: Slip | None, result: dict[str, Any]) -> bool:
    """Whether the current step has a condition that its result does not meet."""
    return slip is not None and slip.gate is not None and not result.get(slip.gate)


def job_result(slip: Slip | None, result: dict[str, Any]) -> dict[str, Any]:
    """The job's result: the fields of the last step's result, and the variables that the slip names."""
    named = {name: slip.variables[name] for name in slip.answer if name in slip.variables} if slip else {}
    return named | result


def next_command(slip: Slip) -> tuple[str, dict[str, Any]]:
    """The name and the command body of the next step. The slip must have a step left."""
    next_step, *rest = slip.itinerary
    update = {"itinerary": rest, "gate": next_step.gate, "again": next_step.again, "reply_here": next_step.reply_here}
    remaining = slip.model_copy(update=update)
    return next_step.step, build_command_body(next_step, slip) | {"slip": remaining.model_dump(mode="json", exclude_defaults=True)}


def _can_loop_back(slip: Slip) -> bool:
    return slip.again is not None and slip.again.times > 0


def _loop_back_changes(slip: Slip, variables: dict[str, Any]) -> dict[str, Any]:
    """The slip fields that change when the job loops back. Deterministic: a redelivery builds the same command."""
    if slip.again is None or slip.again.times < 1:
        return {}
    *before, conditional = slip.again.stops
    remaining = slip.again.model_copy(update={"times": slip.again.times - 1})
    itinerary = [*before, conditional.model_copy(update={"again": remaining}), *slip.itinerary]
    reseeded = {name: _reseed(variables[name], remaining.times) for name in remaining.fresh if isinstance(variables.get(name), int)}
    return {"itinerary": itinerary, "variables": variables | reseeded}


def _reseed(value: int, loops_left: int) -> int:
    """Another integer from 0 to 2³¹ - 1, unrelated to `value`."""
    return int.from_bytes(hashlib.sha256(f"{value}/{loops_left}".encode()).digest()[:4]) >> 1


def build_command_body(slip_step: SlipStep, slip: Slip, **extra: Any) -> dict[str, Any]:
    """A step's command without its slip: the variables that its model has a field for, overridden by the step's own arguments."""
    fields = COMMANDS[slip_step.step].model_fields
    known = {name: value for name, value in slip.variables.items() if name in fields and name != "slip"}
    return known | slip_step.arguments | extra
