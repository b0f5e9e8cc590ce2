"""The slip's rules, pure: what the variables become after a stop, and which command comes next."""

from typing import Any

from contracts.slip import Slip, Stop, Visit
from contracts.steps import COMMANDS


def after_stop(slip: Slip, result: dict[str, Any], visit: Visit) -> Slip:
    """The result's fields become variables (a later stop outranks an earlier one), the visit enters the log."""
    return slip.model_copy(update={"variables": slip.variables | result, "log": [*slip.log, visit]})


def ends_here(slip: Slip | None, result: dict[str, Any]) -> bool:
    """True when no stop is left, or the present stop's gate is shut."""
    return slip is None or not slip.itinerary or (slip.gate is not None and not result.get(slip.gate))


def depart(slip: Slip) -> tuple[str, dict[str, Any]]:
    """The next stop's step and command. The slip must have a stop left."""
    stop, *rest = slip.itinerary
    ahead = slip.model_copy(update={"itinerary": rest, "gate": stop.gate, "reply_here": stop.reply_here})
    return stop.step, command(stop, slip) | {"slip": ahead.model_dump(mode="json", exclude_defaults=True)}


def command(stop: Stop, slip: Slip, **more: Any) -> dict[str, Any]:
    """A stop's command, without a slip: the variables that its model has a field for, outranked by the stop's own arguments."""
    fields = COMMANDS[stop.step].model_fields
    known = {name: value for name, value in slip.variables.items() if name in fields and name != "slip"}
    return known | stop.arguments | more
