"""The slip's rules, pure: what the variables become after a stop, and which command comes next."""

import hashlib
from typing import Any

from contracts.slip import CompletedStep, Slip, SlipStep
from contracts.steps import COMMANDS


def advance(slip: Slip, result: dict[str, Any], completed: CompletedStep) -> Slip:
    """The result's fields become variables (a later stop outranks an earlier one), the visit enters the log.

    A shut gate with a way back puts the stops to be done again before those to come.
    """
    variables = slip.variables | result
    back = _loop_back_changes(slip, variables) if is_refused(slip, result) else {}
    return slip.model_copy(update={"variables": variables, "log": [*slip.log, completed]} | back)


def is_finished(slip: Slip | None, result: dict[str, Any]) -> bool:
    """True when no stop is left, or the present stop's gate is shut and there is no way back."""
    if slip is None:
        return True
    return not _can_loop_back(slip) if is_refused(slip, result) else not slip.itinerary


def is_refused(slip: Slip | None, result: dict[str, Any]) -> bool:
    """Whether the present stop's gate is shut."""
    return slip is not None and slip.gate is not None and not result.get(slip.gate)


def job_result(slip: Slip | None, result: dict[str, Any]) -> dict[str, Any]:
    """The job's result: the last stop's fields, and the variables that the slip names."""
    named = {name: slip.variables[name] for name in slip.answer if name in slip.variables} if slip else {}
    return named | result


def next_command(slip: Slip) -> tuple[str, dict[str, Any]]:
    """The next stop's step and command. The slip must have a stop left."""
    stop, *rest = slip.itinerary
    ahead = slip.model_copy(update={"itinerary": rest, "gate": stop.gate, "again": stop.again, "reply_here": stop.reply_here})
    return stop.step, build_command_body(stop, slip) | {"slip": ahead.model_dump(mode="json", exclude_defaults=True)}


def _can_loop_back(slip: Slip) -> bool:
    return slip.again is not None and slip.again.times > 0


def _loop_back_changes(slip: Slip, variables: dict[str, Any]) -> dict[str, Any]:
    """What changes when the job goes back. Pure: a delivery that comes twice sends the same command twice."""
    if slip.again is None or slip.again.times < 1:
        return {}
    *before, gate = slip.again.stops
    left = slip.again.model_copy(update={"times": slip.again.times - 1})
    itinerary = [*before, gate.model_copy(update={"again": left}), *slip.itinerary]
    fresh = {name: _reseed(variables[name], left.times) for name in left.fresh if isinstance(variables.get(name), int)}
    return {"itinerary": itinerary, "variables": variables | fresh}


def _reseed(value: int, loops_left: int) -> int:
    """Another integer, from 0 to 2³¹ - 1, far from the first."""
    return int.from_bytes(hashlib.sha256(f"{value}/{loops_left}".encode()).digest()[:4]) >> 1


def build_command_body(slip_step: SlipStep, slip: Slip, **extra: Any) -> dict[str, Any]:
    """A stop's command, without a slip: the variables that its model has a field for, outranked by the stop's own arguments."""
    fields = COMMANDS[slip_step.step].model_fields
    known = {name: value for name, value in slip.variables.items() if name in fields and name != "slip"}
    return known | slip_step.arguments | extra
