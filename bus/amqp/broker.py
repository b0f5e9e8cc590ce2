"""Consumers as FastStream subscribers, each with a middleware that processes its deliveries and a typed handler that is never called.

What goes through FastStream, such as a message of its test broker, reaches the middleware; its AsyncAPI document reads the handler's types.
A delivery of the broker takes a shorter way, straight to the same callback: FastStream's own costs more than 5 % (decision 12).
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aio_pika.abc import AbstractIncomingMessage
from faststream import AckPolicy, BaseMiddleware, ContextRepo
from faststream.message import StreamMessage
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue, RabbitRouter
from faststream.rabbit.subscriber import RabbitSubscriber
from yarl import URL

from bus.actor import Actor
from bus.amqp.short_paths import use_short_paths
from bus.amqp.tolerant_decoding import make_decoding_tolerant
from bus.delivery import OnMessage


def create_broker(url: str, name: str) -> RabbitBroker:
    """The connection of the consumers. `name`: what the broker's management lists it as."""
    make_decoding_tolerant()
    use_short_paths()
    address = str(URL(url).update_query(name=name))
    return RabbitBroker(address, logger=None, app_id=name, apply_types=False)  # no handler is called, so none needs a validator


class DeliveryMiddleware(BaseMiddleware[Any, Any]):
    """Gives a delivery to `on_message`, which acknowledges it and never raises; the handler is not called."""

    def __init__(self, message: Any, /, *, context: ContextRepo, on_message: OnMessage) -> None:
        super().__init__(message, context=context)
        self._on_message = on_message

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: StreamMessage[AbstractIncomingMessage]) -> None:
        await self._on_message(msg.raw_message)


def subscribe(
    broker: RabbitBroker,
    queue: RabbitQueue,
    on_message: OnMessage,
    *,
    prefetch: int,
    track: Callable[[OnMessage], OnMessage],
    actor: Actor | None = None,
) -> RabbitSubscriber:
    """Subscribe on a channel of its own, so that its deliveries affect no other consumer. `actor`: whose exchange the queue is bound to.

    `track`: makes the callback that a delivery of the broker is given to.
    """
    router = RabbitRouter(middlewares=[partial(DeliveryMiddleware, on_message=on_message)])
    subscriber = router.subscriber(
        queue,
        RabbitExchange(actor.exchange, type=ExchangeType.TOPIC, durable=True) if actor else None,
        channel=Channel(prefetch_count=prefetch),
        ack_policy=AckPolicy.MANUAL,
        no_reply=True,
        title=actor.step if actor else queue.name,
        description=actor.description if actor else None,
    )
    subscriber(_typed_handler(actor) if actor else _untyped_handler)
    broker.include_router(router)
    subscriber.consume = track(on_message)  # type: ignore[assignment,method-assign] # see decision 12
    return subscriber


def quorum_queue(name: str, routing_key: str = "") -> RabbitQueue:
    """A queue of this system."""
    return RabbitQueue(name, queue_type=QueueType.QUORUM, durable=True, routing_key=routing_key)


def foreign_queue(name: str, *, declare: bool = True) -> RabbitQueue:
    """A queue of another system: classic, durable, no arguments; not declared where its arguments are unknown."""
    return RabbitQueue(name, durable=True) if declare else RabbitQueue(name, declare=False)


def _typed_handler(actor: Actor) -> Callable[..., Awaitable[Any]]:
    async def handle(command: Any) -> Any: ...

    handle.__name__, handle.__doc__ = actor.step, actor.description
    handle.__annotations__ = {"command": actor.command, "return": actor.result}
    return handle


async def _untyped_handler(body: dict[str, Any]) -> None: ...


async def stop_consuming(broker: RabbitBroker) -> None:
    """Cancel every consumer; running deliveries continue. FastStream itself would wait for them first."""
    for subscriber in broker.subscribers:
        if isinstance(subscriber, RabbitSubscriber):
            await pause_consumer(subscriber)


async def pause_consumer(subscriber: RabbitSubscriber) -> None:
    """Take no more deliveries; running ones continue."""
    queue, tag = subscriber._queue_obj, subscriber._consumer_tag
    if queue is not None and tag is not None and not queue.channel.is_closed:
        await queue.cancel(tag)
        subscriber._consumer_tag = None


async def resume_consumer(subscriber: RabbitSubscriber) -> bool:
    """Take deliveries again after a pause; False when the consumer was not paused."""
    queue = subscriber._queue_obj
    if queue is None or subscriber._consumer_tag is not None:
        return False
    subscriber._consumer_tag = await queue.consume(subscriber.consume, arguments=subscriber.consume_args)  # type: ignore[arg-type]
    return True
