"""Exchanges and queues. The arguments of a queue cannot change later, so each has as few as possible; limits are set by policies.

Rule 1: a work queue and a dead-letter queue have `x-queue-type: quorum` and no other argument.
Rule 2: a delay queue has a fanout exchange of the same name. When the delay is over, its messages are dead-lettered to the default
exchange under their own routing key: the name of the queue that they failed in.
Rule 3: a foreign queue is declared exactly as its owner declares it. It is also bound to the commands exchange under its name, because a
publisher without the right to the default exchange, which reaches every queue, publishes there.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused
from pamqp.common import FieldTable

from bus.actor import Actor, Adapter
from contracts import broker_names

QUORUM_ARGUMENTS: FieldTable = {"x-queue-type": "quorum"}
AT_LEAST_ONCE_ARGUMENTS: FieldTable = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
"""Of a delay queue: default dead-lettering loses the messages that expire while the broker dies. Requires reject-publish."""


log = structlog.get_logger()


@dataclass(frozen=True)
class QueueDepth:
    """How many messages of a queue wait for a consumer, and how many consumers it has."""

    ready: int
    consumers: int


async def read_queue_depth(channel: AbstractChannel, queue: str) -> QueueDepth | None:
    """By passive declaration. None for a queue that does not exist; the broker has closed the channel then."""
    try:
        declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    except ChannelNotFoundEntity:
        return None
    return QueueDepth(declared.message_count or 0, declared.consumer_count or 0)


async def declare_exchanges(channel: AbstractChannel) -> None:
    await channel.declare_exchange(broker_names.COMMANDS_EXCHANGE, ExchangeType.TOPIC, durable=True)
    await channel.declare_exchange(broker_names.EVENTS_EXCHANGE, ExchangeType.TOPIC, durable=True)
    await channel.declare_exchange(broker_names.CONTROL_EXCHANGE, ExchangeType.FANOUT, durable=True)


async def declare_step_queues(
    channel: AbstractChannel, step: str, *, exchange: str = broker_names.COMMANDS_EXCHANGE, routing_keys: Iterable[str] = ()
) -> None:
    """The work queue of a step, bound by `routing_keys` (default: the step), and its dead-letter queue."""
    queue = await channel.declare_queue(broker_names.work_queue(step), durable=True, arguments=QUORUM_ARGUMENTS)
    for key in routing_keys or (step,):
        await queue.bind(exchange, key)
    await declare_dead_letter_queues(channel, broker_names.dead_letter_queue(step))


async def declare_dead_letter_queues(channel: AbstractChannel, *queues: str) -> None:
    for queue in queues:
        await channel.declare_queue(queue, durable=True, arguments=QUORUM_ARGUMENTS)


async def declare_delay_queue(channel: AbstractChannel, delay_seconds: float) -> None:
    name = broker_names.retry_exchange(delay_seconds)
    exchange = await channel.declare_exchange(name, ExchangeType.FANOUT, durable=True)
    expiry: FieldTable = {"x-message-ttl": round(delay_seconds * 1000), "x-dead-letter-exchange": ""}
    queue = await channel.declare_queue(name, durable=True, arguments=QUORUM_ARGUMENTS | AT_LEAST_ONCE_ARGUMENTS | expiry)
    await queue.bind(exchange)


async def declare_command_queues(channel: AbstractChannel, steps: Iterable[str]) -> None:
    """What a process that only publishes needs: a command has its queue before the actor of its step has ever run."""
    await declare_exchanges(channel)
    for step in steps:
        await declare_step_queues(channel, step)


async def declare_command_queues_if_permitted(channel: AbstractChannel, steps: Iterable[str]) -> None:
    """As `declare_command_queues`. The broker closes the channel where its user may not declare; `atelier prepare` has done it there."""
    try:
        await declare_command_queues(channel, steps)
    except ChannelAccessRefused as error:
        log.info("topology.not_permitted", reason=str(error), remedy="the queues must exist: run atelier prepare, or an actor")


async def declare_topology(
    channel: AbstractChannel,
    actors: Iterable[Actor],
    adapters: Iterable[Adapter],
    steps: Iterable[str],
    delay_queue_seconds: Iterable[float],
) -> None:
    """Everything that a worker publishes to or consumes. `steps`: the steps whose queues must exist, whichever worker serves them."""
    await declare_command_queues(channel, steps)
    for actor in actors:
        await declare_step_queues(channel, actor.step, exchange=actor.exchange, routing_keys=actor.binding_keys)
    for adapter in adapters:
        queue = await channel.declare_queue(adapter.queue, durable=True)
        await queue.bind(broker_names.COMMANDS_EXCHANGE, adapter.queue)
        await declare_dead_letter_queues(channel, broker_names.dead_letter_queue(adapter.name))
    for delay in delay_queue_seconds:
        await declare_delay_queue(channel, delay)
