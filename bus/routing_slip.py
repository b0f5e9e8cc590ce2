"""The slip's rules, pure: what the variables become after a stop, and which command comes next."""

import hashlib
from typing import Any

from contracts.slip import Slip, Stop, Visit
from contracts.steps import COMMANDS


def after_stop(slip: Slip, result: dict[str, Any], visit: Visit) -> Slip:
    """The result's fields become variables (a later stop outranks an earlier one), the visit enters the log.

    A shut gate with a way back puts the stops to be done again before those to come.
    """
    variables = slip.variables | result
    back = _back(slip, variables) if refused(slip, result) else {}
    return slip.model_copy(update={"variables": variables, "log": [*slip.log, visit]} | back)


def ends_here(slip: Slip | None, result: dict[str, Any]) -> bool:
    """True when no stop is left, or the present stop's gate is shut and there is no way back."""
    if slip is None:
        return True
    return not _may_go_back(slip) if refused(slip, result) else not slip.itinerary


def refused(slip: Slip | None, result: dict[str, Any]) -> bool:
    """Whether the present stop's gate is shut."""
    return slip is not None and slip.gate is not None and not result.get(slip.gate)


def answer(slip: Slip | None, result: dict[str, Any]) -> dict[str, Any]:
    """The job's result: the last stop's fields, and the variables that the slip names."""
    named = {name: slip.variables[name] for name in slip.answer if name in slip.variables} if slip else {}
    return named | result


def depart(slip: Slip) -> tuple[str, dict[str, Any]]:
    """The next stop's step and command. The slip must have a stop left."""
    stop, *rest = slip.itinerary
    ahead = slip.model_copy(update={"itinerary": rest, "gate": stop.gate, "again": stop.again, "reply_here": stop.reply_here})
    return stop.step, command(stop, slip) | {"slip": ahead.model_dump(mode="json", exclude_defaults=True)}


def _may_go_back(slip: Slip) -> bool:
    return slip.again is not None and slip.again.times > 0


def _back(slip: Slip, variables: dict[str, Any]) -> dict[str, Any]:
    """What changes when the job goes back. Pure: a delivery that comes twice sends the same command twice."""
    if slip.again is None or slip.again.times < 1:
        return {}
    *before, gate = slip.again.stops
    left = slip.again.model_copy(update={"times": slip.again.times - 1})
    itinerary = [*before, gate.model_copy(update={"again": left}), *slip.itinerary]
    fresh = {name: _another(variables[name], left.times) for name in left.fresh if isinstance(variables.get(name), int)}
    return {"itinerary": itinerary, "variables": variables | fresh}


def _another(value: int, left: int) -> int:
    """Another integer, from 0 to 2³¹ - 1, far from the first."""
    return int.from_bytes(hashlib.sha256(f"{value}/{left}".encode()).digest()[:4]) >> 1


def command(stop: Stop, slip: Slip, **more: Any) -> dict[str, Any]:
    """A stop's command, without a slip: the variables that its model has a field for, outranked by the stop's own arguments."""
    fields = COMMANDS[stop.step].model_fields
    known = {name: value for name, value in slip.variables.items() if name in fields and name != "slip"}
    return known | stop.arguments | more
