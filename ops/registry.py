"""Which module serves which step. A module is imported when its step is loaded, so that a CPU actor never imports torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bus.actor import Actor, Adapter
from bus.worker.pg_listener import PgListener
from contracts import broker_names
from ops.errors import SetupError

if TYPE_CHECKING:
    from bus.dead_letters.ingest import DeadLetterIngest

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
    "response.run": "actors.responses",
    "moderate": "actors.moderate",
    "embed": "actors.embed",
    "conversations": "actors.conversations",
    "variants": "actors.variants",
    "job_variants": "actors.adapters.job_variants",
    "ledger": "actors.ledger",
    "dead-letters": "actors.dead_letters",
}
"""Step or foreign queue to module. A module defines ACTOR, ACTORS, ADAPTER or INGEST, or a function such as `build_actor` that makes it."""

PROCESS_GROUPS: dict[str, tuple[str, ...]] = {
    "vision": ("consult", "validate", "judge"),
    "text": ("text", "response.run"),
}
"""Steps that one process serves, by its name. They share one copy of the model; each further process would load another on the device."""

NEEDS_MODELS = frozenset({"image", "consult", "validate", "judge"})
"""Steps that need the `models` extra."""

OPTIONAL = frozenset({"moderate", "embed"})
"""Steps that no standard itinerary has. `atelier up` without arguments leaves them out, Compose has them in a profile of their own."""


@dataclass(frozen=True)
class WorkerComponents:
    """The components of one worker process."""

    actors: list[Actor]
    adapters: list[Adapter | PgListener]
    ingests: "list[DeadLetterIngest]"


def load_actors(steps: list[str]) -> WorkerComponents:
    """Import the components that serve `steps`, which may be names of groups. Raises SetupError for an unknown step."""
    modules = [import_module(MODULES[step]) for step in expand_groups(steps)]
    actors = [actor for group in components_of(modules, "ACTORS") for actor in group] + components_of(modules, "ACTOR")
    return WorkerComponents(actors, components_of(modules, "ADAPTER"), components_of(modules, "INGEST"))


def steps_of(process: str) -> tuple[str, ...]:
    """The steps of a group, or the one step itself."""
    return PROCESS_GROUPS.get(process, (process,))


def expand_groups(names: Sequence[str]) -> list[str]:
    """Each step once, in order. Raises SetupError for a name that is neither a step nor a group."""
    steps = list(dict.fromkeys(step for name in names for step in steps_of(name)))
    require_known(steps)
    return steps


def processes_of(names: Sequence[str]) -> list[str]:
    """The processes that serve steps or groups: the arguments of one `atelier run` each, several steps of a group separated by blanks.

    Raises SetupError for a name that is neither a step nor a group.
    """
    steps = expand_groups(names)
    group_of = {step: group for group in PROCESS_GROUPS for step in PROCESS_GROUPS[group]}
    processes: dict[str, list[str]] = {}
    for step in steps:
        processes.setdefault(group_of.get(step, step), []).append(step)
    return [name if set(served) == set(steps_of(name)) else " ".join(served) for name, served in processes.items()]


def components_of(modules: Sequence[ModuleType], name: str) -> list[Any]:
    """The constant `name` of each module that defines it, or the result of its `build_<name>`, which reads settings when it is called."""
    built = [getattr(module, f"build_{name.lower()}")() for module in modules if hasattr(module, f"build_{name.lower()}")]
    return built + [getattr(module, name) for module in modules if hasattr(module, name)]


def require_known(steps: Sequence[str]) -> None:
    """Raises SetupError for a step that no module serves."""
    if unknown := [step for step in steps if step not in MODULES]:
        raise SetupError(f"No actor serves {', '.join(unknown)}. There are: {', '.join(dict.fromkeys((*MODULES, *PROCESS_GROUPS)))}.")


def queue_of(step: str) -> str:
    """The queue that a step of MODULES consumes."""
    return step if step == broker_names.IMAGE_GENERATION_QUEUE else broker_names.work_queue(step)


@dataclass(frozen=True)
class BusParticipants:
    """Everything that consumes from the bus, for its topology and its documents."""

    command_actors: list[Actor]
    event_actors: list[Actor]
    adapters: list[Adapter]
    dead_letter_queues: list[str]


def bus_participants() -> BusParticipants:
    """The participants of all steps, sorted by step."""
    components = load_actors(list(MODULES))
    actors = sorted(components.actors, key=lambda actor: actor.step)
    adapters = [adapter for adapter in components.adapters if isinstance(adapter, Adapter)]
    dead_lettering = [actor.step for actor in actors if not actor.is_query] + [adapter.name for adapter in adapters]
    return BusParticipants(
        [actor for actor in actors if actor.exchange == broker_names.COMMANDS_EXCHANGE],
        [actor for actor in actors if actor.exchange != broker_names.COMMANDS_EXCHANGE],
        adapters,
        sorted(broker_names.dead_letter_queue(step) for step in dead_lettering),
    )
