"""Who speaks on the bus: every actor, adapter and queue of dead letters that the workshop knows."""

from dataclasses import dataclass

from bus.actor import Actor
from bus.adapter import Adapter
from contracts import channels
from ops.workshop import MODULES, hire


@dataclass(frozen=True)
class Speakers:
    """`workers` take commands, `hearers` take events."""

    workers: list[Actor]
    hearers: list[Actor]
    adapters: list[Adapter]
    dead_queues: list[str]


def speakers() -> Speakers:
    staff = hire(list(MODULES))
    actors = sorted(staff.actors, key=lambda actor: actor.step)
    adapters = [adapter for adapter in staff.adapters if isinstance(adapter, Adapter)]
    burying = [actor.step for actor in actors if not actor.question] + [adapter.name for adapter in adapters]
    return Speakers(
        [actor for actor in actors if actor.exchange == channels.COMMANDS],
        [actor for actor in actors if actor.exchange != channels.COMMANDS],
        adapters,
        sorted(channels.dead_queue(step) for step in burying),
    )
