"""Exchanges and queues. Arguments of a queue cannot change later, so each has as few as can be; limits come as policies.

Rule 1: a work queue and a dead-letter queue have `x-queue-type: quorum` and no other argument.
Rule 2: a rung of the retry ladder is a fanout exchange with one queue of the same name, whose messages go back, when their time
is up, through the default exchange under their own key: the name of the queue that failed.
Rule 3: a foreign queue is declared just as its owner declares it.
"""

from collections.abc import Iterable

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from pamqp.common import FieldTable

from bus.actor import Actor, Adapter
from contracts import broker_names

QUORUM_ARGUMENTS: FieldTable = {"x-queue-type": "quorum"}
AT_LEAST_ONCE_ARGUMENTS: FieldTable = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
"""Of a rung: the usual dead-lettering forgets a message whose time was up when the broker died. It asks for reject-publish."""


async def declare_exchanges(channel: AbstractChannel) -> None:
    await channel.declare_exchange(broker_names.COMMANDS_EXCHANGE, ExchangeType.TOPIC, durable=True)
    await channel.declare_exchange(broker_names.EVENTS_EXCHANGE, ExchangeType.TOPIC, durable=True)
    await channel.declare_exchange(broker_names.CONTROL_EXCHANGE, ExchangeType.FANOUT, durable=True)


async def declare_step_queues(
    channel: AbstractChannel, step: str, *, exchange: str = broker_names.COMMANDS_EXCHANGE, routing_keys: Iterable[str] = ()
) -> None:
    """The work queue of a step, bound by its keys, and the queue of its dead letters."""
    queue = await channel.declare_queue(broker_names.work_queue(step), durable=True, arguments=QUORUM_ARGUMENTS)
    for key in routing_keys or (step,):
        await queue.bind(exchange, key)
    await declare_dead_letter_queues(channel, broker_names.dead_letter_queue(step))


async def declare_dead_letter_queues(channel: AbstractChannel, *queues: str) -> None:
    for queue in queues:
        await channel.declare_queue(queue, durable=True, arguments=QUORUM_ARGUMENTS)


async def declare_delay_queue(channel: AbstractChannel, delay_seconds: float) -> None:
    """One rung of the retry ladder."""
    name = broker_names.retry_exchange(delay_seconds)
    exchange = await channel.declare_exchange(name, ExchangeType.FANOUT, durable=True)
    expiry: FieldTable = {"x-message-ttl": round(delay_seconds * 1000), "x-dead-letter-exchange": ""}
    queue = await channel.declare_queue(name, durable=True, arguments=QUORUM_ARGUMENTS | AT_LEAST_ONCE_ARGUMENTS | expiry)
    await queue.bind(exchange)


async def declare_command_queues(channel: AbstractChannel, steps: Iterable[str]) -> None:
    """What a process needs that only sends: a command finds its queue before its actor has ever run."""
    await declare_exchanges(channel)
    for step in steps:
        await declare_step_queues(channel, step)


async def declare_topology(
    channel: AbstractChannel,
    actors: Iterable[Actor],
    adapters: Iterable[Adapter],
    steps: Iterable[str],
    delay_queue_seconds: Iterable[float],
) -> None:
    """Everything that a process publishes to or reads from. `steps`: command queues that must be there, whoever serves them."""
    await declare_command_queues(channel, steps)
    for actor in actors:
        await declare_step_queues(channel, actor.step, exchange=actor.exchange, routing_keys=actor.binding_keys)
    for adapter in adapters:
        await channel.declare_queue(adapter.queue, durable=True)
        await declare_dead_letter_queues(channel, broker_names.dead_letter_queue(adapter.name))
    for delay in delay_queue_seconds:
        await declare_delay_queue(channel, delay)
