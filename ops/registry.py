"""Which module serves which step. Nothing is imported until a step is asked for, so that a CPU actor never meets torch."""

from dataclasses import dataclass
from importlib import import_module

from bus.actor import Actor, Adapter
from bus.dead_letters.ingest import DeadLetterIngest
from bus.worker.pg_listener import PgListener
from contracts import broker_names
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
"""Step or foreign queue to module. A module has an ACTOR, several ACTORS, an ADAPTER, or an INGEST."""


NEEDS_MODELS = frozenset({"image", "consult", "validate", "judge"})
"""Steps that need the `models` extra."""


@dataclass(frozen=True)
class WorkerComponents:
    """Who works in one process."""

    actors: list[Actor]
    adapters: list[Adapter | PgListener]
    ingests: list[DeadLetterIngest]


def load_actors(steps: list[str]) -> WorkerComponents:
    """Import what serves `steps`. Raises SetupError for a step that nobody knows."""
    unknown = [step for step in steps if step not in MODULES]
    if unknown:
        raise SetupError(f"No actor serves {', '.join(unknown)}. There are: {', '.join(MODULES)}.")
    rooms = [import_module(MODULES[step]) for step in steps]
    actors = [actor for room in rooms for actor in getattr(room, "ACTORS", ())] + [room.ACTOR for room in rooms if hasattr(room, "ACTOR")]
    adapters = [room.ADAPTER for room in rooms if hasattr(room, "ADAPTER")]
    return WorkerComponents(actors, adapters, [room.INGEST for room in rooms if hasattr(room, "INGEST")])


@dataclass(frozen=True)
class BusParticipants:
    """`workers` take commands, `hearers` take events."""

    command_actors: list[Actor]
    event_actors: list[Actor]
    adapters: list[Adapter]
    dead_letter_queues: list[str]


def bus_participants() -> BusParticipants:
    staff = load_actors(list(MODULES))
    actors = sorted(staff.actors, key=lambda actor: actor.step)
    adapters = [adapter for adapter in staff.adapters if isinstance(adapter, Adapter)]
    burying = [actor.step for actor in actors if not actor.is_query] + [adapter.name for adapter in adapters]
    return BusParticipants(
        [actor for actor in actors if actor.exchange == broker_names.COMMANDS_EXCHANGE],
        [actor for actor in actors if actor.exchange != broker_names.COMMANDS_EXCHANGE],
        adapters,
        sorted(broker_names.dead_letter_queue(step) for step in burying),
    )
