"""Safeties taken away, one at a time, to see the suite notice: `python -m tests.chaos.mutations` runs each and expects red."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, DeliveryMode
from faststream.rabbit import QueueType

from bus.amqp import broker, publisher, topology
from bus.persistence.inbox import Inbox, NullInbox
from bus.worker import worker
from bus.worker.consumer import DeliveryConsumer


def no_persistence() -> None:
    """Classic queues, and messages that live in memory."""

    class Kinds:
        QUORUM = QueueType.CLASSIC

    topology.QUORUM_ARGUMENTS.clear()
    topology.AT_LEAST_ONCE_ARGUMENTS.clear()
    broker.QueueType = Kinds  # type: ignore[misc,assignment]
    write = publisher.Publisher._message

    def forgetful(self: publisher.Publisher, letter: Any) -> aio_pika.Message:
        message = write(self, letter)
        message.delivery_mode = DeliveryMode.NOT_PERSISTENT
        return message

    publisher.Publisher._message = forgetful  # type: ignore[method-assign]


def ack_first() -> None:
    receive = DeliveryConsumer.on_message

    async def hasty(self: DeliveryConsumer, raw: AbstractIncomingMessage) -> None:
        await raw.ack()
        await receive(self, raw)

    DeliveryConsumer.on_message = hasty  # type: ignore[method-assign]


def no_inbox() -> None:
    @asynccontextmanager
    async def open_inbox(pool: Any) -> AsyncIterator[Inbox]:
        yield NullInbox(pool)

    worker.open_inbox = open_inbox  # type: ignore[assignment]


def no_confirms() -> None:
    async def careless(self: publisher.Publisher, *letters: Any) -> None:
        for letter in letters:
            task = asyncio.create_task(self._publish_one(letter))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    publisher.Publisher.publish = careless  # type: ignore[method-assign,assignment]


MUTATIONS: dict[str, tuple[Callable[[], None], str]] = {
    "no-persistence": (no_persistence, "broker-killed"),
    "ack-first": (ack_first, "actors-killed"),
    "no-inbox": (no_inbox, "connections-closed"),
    "no-confirms": (no_confirms, "actors-killed-under-alarm"),
}
"""What is taken away, and the fault that shows it."""


def apply_mutation() -> None:
    """In an actor's process: take away what the environment names."""
    if name := os.environ.get("ATELIER_MUTATION"):
        MUTATIONS[name][0]()


def main() -> int:
    from tests.chaos.__main__ import run_faults

    unseen = []
    for name, (_, fault) in MUTATIONS.items():
        rounds = asyncio.run(run_faults([fault], orders=150, rate=25, seed=5, mutation=name))
        red = not all(played.clean for played in rounds)
        sys.stdout.write(f"{name}: {'red, as it must be' if red else 'NOT SEEN'} {rounds[0].as_dict}\n")
        unseen += [] if red else [name]
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
