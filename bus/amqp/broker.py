"""Actors as FastStream subscribers. The typed handler is registered for AsyncAPI; deliveries go past FastStream's own call: decision 5."""

from collections.abc import Awaitable, Callable
from typing import Any

from aio_pika.abc import AbstractIncomingMessage
from faststream import AckPolicy
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue, RabbitRouter
from faststream.rabbit.subscriber import RabbitSubscriber

from bus.actor import Actor

OnMessage = Callable[[AbstractIncomingMessage], Awaitable[None]]


def create_broker(url: str, name: str) -> RabbitBroker:
    return RabbitBroker(url, logger=None, app_id=name)


def subscribe_actor(broker: RabbitBroker, actor: Actor, on_message: OnMessage) -> RabbitSubscriber:
    """Subscribe an actor. It has a channel of its own, so that what happens to its deliveries touches no other actor."""
    kind = ExchangeType.TOPIC
    router = RabbitRouter()
    subscriber = router.subscriber(
        RabbitQueue(actor.queue, queue_type=QueueType.QUORUM, durable=True, routing_key=actor.binding_keys[0]),
        RabbitExchange(actor.exchange, type=kind, durable=True),
        channel=Channel(prefetch_count=actor.prefetch),
        ack_policy=AckPolicy.MANUAL,
        no_reply=True,
        title=actor.step,
        description=actor.description,
    )
    subscriber(_typed_handler(actor))
    broker.include_router(router)
    subscriber.consume = on_message  # type: ignore[assignment,method-assign] # past FastStream's own call, see decision 5
    return subscriber


def subscribe_foreign(broker: RabbitBroker, queue: str, prefetch: int, on_message: OnMessage) -> RabbitSubscriber:
    """Subscribe to a queue that belongs to someone else: classic, durable, no arguments, on the default exchange."""
    router = RabbitRouter()
    subscriber = router.subscriber(
        RabbitQueue(queue, durable=True),
        channel=Channel(prefetch_count=prefetch),
        ack_policy=AckPolicy.MANUAL,
        no_reply=True,
        title=queue,
    )
    subscriber(_raw_handler)
    broker.include_router(router)
    subscriber.consume = on_message  # type: ignore[assignment,method-assign]
    return subscriber


def subscribe_dead_letters(broker: RabbitBroker, queue: str, prefetch: int, on_message: OnMessage, *, declare: bool) -> RabbitSubscriber:
    """Subscribe to a queue of dead letters. One that is not ours is not declared either: nobody here knows its arguments."""
    router = RabbitRouter()
    subscriber = router.subscriber(
        RabbitQueue(queue, queue_type=QueueType.QUORUM, durable=True) if declare else RabbitQueue(queue, declare=False),
        channel=Channel(prefetch_count=prefetch),
        ack_policy=AckPolicy.MANUAL,
        no_reply=True,
        title=queue,
    )
    subscriber(_raw_handler)
    broker.include_router(router)
    subscriber.consume = on_message  # type: ignore[assignment,method-assign]
    return subscriber


def _typed_handler(actor: Actor) -> Callable[..., Awaitable[Any]]:
    async def handle(command: Any) -> Any: ...

    handle.__name__, handle.__doc__ = actor.step, actor.description
    handle.__annotations__ = {"command": actor.command, "return": actor.result}
    return handle


async def _raw_handler(body: dict[str, Any]) -> None: ...


async def stop_consuming(broker: RabbitBroker) -> None:
    """Cancel every consumer, while deliveries at work go on. FastStream itself would drain first and cancel after."""
    for subscriber in broker.subscribers:
        if isinstance(subscriber, RabbitSubscriber):
            await pause_consumer(subscriber)


async def pause_consumer(subscriber: RabbitSubscriber) -> None:
    """Take no more deliveries; those in hand go on."""
    queue, tag = subscriber._queue_obj, subscriber._consumer_tag
    if queue is not None and tag is not None and not queue.channel.is_closed:
        await queue.cancel(tag)
        subscriber._consumer_tag = None


async def resume_consumer(subscriber: RabbitSubscriber) -> bool:
    """Take deliveries again after a pause; False when there was none."""
    queue = subscriber._queue_obj
    if queue is None or subscriber._consumer_tag is not None:
        return False
    subscriber._consumer_tag = await queue.consume(subscriber.consume, arguments=subscriber.consume_args)  # type: ignore[arg-type]
    return True
