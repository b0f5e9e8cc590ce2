"""Safety mechanisms disabled one at a time: `python -m tests.chaos.mutations` runs the chaos suite with each and expects it to fail."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aio_pika.abc import AbstractIncomingMessage, DeliveryMode
from faststream.rabbit import QueueType

from bus.amqp import acknowledgements, broker, publisher, topology
from bus.amqp.messages import OutboundMessage
from bus.amqp.raw_properties import encode_properties
from bus.outcome import Outcome
from bus.persistence.inbox import Inbox, NullInbox
from bus.worker import consumer, resources
from bus.worker.consumer import DeliveryConsumer


def no_persistence() -> None:
    """Classic queues, and messages that are not persistent."""

    class ClassicQueues:
        QUORUM = QueueType.CLASSIC

    topology.QUORUM_ARGUMENTS.clear()
    topology.AT_LEAST_ONCE_ARGUMENTS.clear()
    broker.QueueType = ClassicQueues  # type: ignore[misc,assignment]

    def transient_properties(**properties: Any) -> bytes:
        return encode_properties(**properties | {"delivery_mode": DeliveryMode.NOT_PERSISTENT})

    publisher.encode_properties = transient_properties  # type: ignore[attr-defined,assignment]


def ack_first() -> None:
    on_message = DeliveryConsumer.on_message

    async def ack_and_process(self: DeliveryConsumer, message: AbstractIncomingMessage) -> None:
        acknowledgements.ack(message)
        await on_message(self, message)

    async def acknowledge_nothing(_: AbstractIncomingMessage, __: Outcome) -> None:
        """A second ack would close the channel."""

    DeliveryConsumer.on_message = ack_and_process  # type: ignore[method-assign]
    consumer._acknowledge = acknowledge_nothing


def no_inbox() -> None:
    @asynccontextmanager
    async def open_inbox(pool: Any, locks: Any) -> AsyncIterator[Inbox]:
        yield NullInbox(pool)

    resources.open_inbox = open_inbox  # type: ignore[attr-defined,assignment]


def no_confirms() -> None:
    async def publish_unconfirmed(self: publisher.Publisher, *messages: OutboundMessage) -> None:
        for message in messages:
            task = asyncio.create_task(self._publish_one(message))
            task.add_done_callback(lambda finished: finished.cancelled() or finished.exception())

    publisher.Publisher.publish = publish_unconfirmed  # type: ignore[method-assign]


MUTATIONS: dict[str, tuple[Callable[[], None], str]] = {
    "no-persistence": (no_persistence, "broker-killed"),
    "ack-first": (ack_first, "actors-killed"),
    "no-inbox": (no_inbox, "connections-closed"),
    "no-confirms": (no_confirms, "actors-killed-under-alarm"),
}
"""What disables the mechanism, and the fault that reveals it."""


def apply_mutation() -> None:
    """In a worker process: disable the mechanism that the environment names."""
    if name := os.environ.get("ATELIER_MUTATION"):
        MUTATIONS[name][0]()


def main() -> int:
    from tests.chaos.__main__ import run_faults

    undetected = []
    for name, (_, fault) in MUTATIONS.items():
        results = asyncio.run(run_faults([fault], orders=150, rate=25, seed=5, mutation=name))
        detected = not all(result.clean for result in results)
        sys.stdout.write(f"{name}: {'detected' if detected else 'NOT DETECTED'} {results[0].as_dict}\n")
        undetected += [] if detected else [name]
    return 1 if undetected else 0


if __name__ == "__main__":
    sys.exit(main())
