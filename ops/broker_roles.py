"""The RabbitMQ users of this system, one per role.

Each may declare (configure), publish to and bind (write), and consume and bind to (read) what its patterns match.

The patterns follow what `bus/amqp/` declares, publishes and consumes; tests/integration/test_broker_users.py runs the whole system
with these users and tries what each may not do. A pattern must match the whole name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from contracts.broker_names import COMMANDS_EXCHANGE, CONTROL_EXCHANGE, EVENTS_EXCHANGE, IMAGE_GENERATION_QUEUE
from contracts.steps import COMMANDS

DEFAULT_EXCHANGE = "amq.default"
"""RabbitMQ's name for the default exchange in permissions. Whoever may write to it reaches every queue by its name."""
TEMPORARY_PREFIXES = ("reply", "roll", "listener", "control")
"""Of the exclusive queues of single processes: `atelier.<prefix>.<uuid>`."""
GENERATED_QUEUES = (r"amq\.gen-.+", r"amq_.+")
"""Exclusive queues that the broker, or a client library, names."""


@dataclass(frozen=True)
class Role:
    """`writable_keys`: the routing keys that the user may publish with, by topic exchange; all of them for an exchange that is missing.

    `tags`: RabbitMQ's, for its HTTP API.
    """

    name: str
    configure: str
    write: str
    read: str
    writable_keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tags: tuple[str, ...] = ()

    @property
    def user(self) -> str:
        return f"atelier-{self.name}"

    def to_json(self) -> dict[str, Any]:
        permissions = {"configure": self.configure, "write": self.write, "read": self.read}
        return {"role": self.name, "user": self.user, **permissions, "writable_keys": dict(self.writable_keys), "tags": list(self.tags)}


def broker_roles(*, foreign_queue: bool = False, dead_letter_queues: Iterable[str] = ()) -> dict[str, Role]:
    """The roles by name.

    `foreign_queue`: a publisher may also declare `image_generation` and publish through the default exchange, as the backend of the
    image worker that this replaces does. `dead_letter_queues`: of other systems, which our actors consume.
    """
    roles = (publisher_role(foreign_queue=foreign_queue), actor_role(dead_letter_queues), gateway_role(), operator_role())
    return {role.name: role for role in roles}


def publisher_role(*, foreign_queue: bool) -> Role:
    own = (temporary_queues("reply"), *GENERATED_QUEUES)
    foreign = (re.escape(IMAGE_GENERATION_QUEUE),) if foreign_queue else ()
    default_exchange = (re.escape(DEFAULT_EXCHANGE),) if foreign_queue else ()
    keys = {COMMANDS_EXCHANGE: pattern(*(re.escape(step) for step in (*COMMANDS, IMAGE_GENERATION_QUEUE)))}
    return Role(
        "publisher",
        configure=pattern(*own, *foreign),
        write=pattern(re.escape(COMMANDS_EXCHANGE), *default_exchange),
        read=pattern(*own),
        writable_keys=keys,
    )


def actor_role(dead_letter_queues: Iterable[str]) -> Role:
    """Declares the topology. Replies, dead letters and replays go through the default exchange, so it can reach every queue."""
    own, foreign = temporary_queues("control"), re.escape(IMAGE_GENERATION_QUEUE)
    return Role(
        "actor",
        configure=pattern(durable_names(), own, foreign),
        write=pattern(durable_names(CONTROL_EXCHANGE), own, foreign, re.escape(DEFAULT_EXCHANGE)),
        read=pattern(durable_names(), own, foreign, *(re.escape(queue) for queue in dead_letter_queues)),
    )


def gateway_role() -> Role:
    """Publishes commands, cancellations and the event that a job is accepted; reads replies, events and revoked sessions."""
    own = temporary_queues("reply", "listener", "roll")
    exchanges = (re.escape(name) for name in (COMMANDS_EXCHANGE, EVENTS_EXCHANGE, CONTROL_EXCHANGE))
    return Role(
        "gateway",
        configure=pattern(own),
        write=pattern(*exchanges, own),
        read=pattern(re.escape(EVENTS_EXCHANGE), re.escape(CONTROL_EXCHANGE), own),
        writable_keys={EVENTS_EXCHANGE: pattern(r"job\.accepted\..+")},
    )


def operator_role() -> Role:
    """Replays dead letters through the default exchange, cancels jobs and follows events; reads the broker's HTTP API."""
    own = temporary_queues("listener", "roll")
    return Role(
        "operator",
        configure=pattern(own),
        write=pattern(re.escape(CONTROL_EXCHANGE), re.escape(DEFAULT_EXCHANGE), own),
        read=pattern(re.escape(EVENTS_EXCHANGE), own),
        tags=("monitoring",),
    )


def durable_names(*excluded: str) -> str:
    """Our exchanges and queues without the exclusive queues of single processes and without `excluded`."""
    others = [rf"{re.escape(name)}$" for name in excluded] + [rf"atelier\.(?:{'|'.join(TEMPORARY_PREFIXES)})\."]
    return rf"(?!{'|'.join(others)})atelier\..+"


def temporary_queues(*prefixes: str) -> str:
    return rf"atelier\.(?:{'|'.join(prefixes)})\..+"


def pattern(*alternatives: str) -> str:
    return f"^(?:{'|'.join(alternatives)})$"
