"""Which module serves which step. Nothing is imported until a step is asked for, so that a CPU actor never meets torch."""

from dataclasses import dataclass
from importlib import import_module

from bus.actor import Actor
from bus.adapter import Adapter
from bus.dead_letters.intake import Intake
from bus.triggers import Trigger
from ops.errors import SetupError

MODULES: dict[str, str] = {
    "image_generation": "actors.adapters.image_generation",
    "image": "actors.image",
    "watermark": "actors.watermark",
    "overlay": "actors.overlay",
    "upload": "actors.upload",
    "webhook": "actors.webhook",
    "consult": "actors.consult",
    "validate": "actors.validate",
    "judge": "actors.judge",
    "text": "actors.text",
    "conversations": "actors.conversations",
    "variants": "actors.variants",
    "job_variants": "actors.adapters.job_variants",
    "ledger": "actors.ledger",
    "dead-letters": "actors.dead_letters",
}
"""Step or foreign queue to module. A module has an ACTOR, several ACTORS, an ADAPTER, or an INTAKE."""

NEEDS_MODELS = frozenset({"image", "consult", "validate", "judge"})
"""Steps that need the `models` extra."""


@dataclass(frozen=True)
class Staff:
    """Who works in one process."""

    actors: list[Actor]
    adapters: list[Adapter | Trigger]
    intakes: list[Intake]


def hire(steps: list[str]) -> Staff:
    """Import what serves `steps`. Raises SetupError for a step that nobody knows."""
    unknown = [step for step in steps if step not in MODULES]
    if unknown:
        raise SetupError(f"No actor serves {', '.join(unknown)}. There are: {', '.join(MODULES)}.")
    rooms = [import_module(MODULES[step]) for step in steps]
    actors = [actor for room in rooms for actor in getattr(room, "ACTORS", ())] + [room.ACTOR for room in rooms if hasattr(room, "ACTOR")]
    adapters = [room.ADAPTER for room in rooms if hasattr(room, "ADAPTER")]
    return Staff(actors, adapters, [room.INTAKE for room in rooms if hasattr(room, "INTAKE")])
