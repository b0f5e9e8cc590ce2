"""A channel of the client library that takes deliveries and confirms where its connection reads them (decision 20).

The library gives each frame to a queue, a reader of the channel takes it from there, and a task of its own calls the consumer: three turns
of the event loop. Here a frame before which none waits in that queue needs neither. Every other frame takes the library's way.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from aio_pika import IncomingMessage
from aio_pika.abc import AbstractIncomingMessage
from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.channel import Channel
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

log = structlog.get_logger()


class ReceivedMessage(IncomingMessage):
    """Nothing here changes a message, so its attributes need no check of a lock, of which the library makes twenty a message."""

    __slots__ = ()
    __setattr__ = object.__setattr__  # type: ignore[assignment]


@dataclass(frozen=True)
class TaskStarter:
    """A consumer's callback that starts a task of its own for each message. `start` does that without being awaited."""

    start: Callable[[AbstractIncomingMessage], None]

    async def __call__(self, message: AbstractIncomingMessage) -> None:
        self.start(message)


async def deliver(callback: Callable[[AbstractIncomingMessage], Awaitable[Any]], delivered: DeliveredMessage, *, no_ack: bool) -> Any:
    """As aio-pika's own, without a task inside its task."""
    return await callback(ReceivedMessage(delivered, no_ack=no_ack))


class FrameQueue(asyncio.Queue[tuple[int, Any]]):
    """The frames that the reader of a channel is to take."""

    def __init__(self, channel: "DirectChannel", maxsize: int) -> None:
        super().__init__(maxsize)
        self._channel = channel
        self._delivery: list[tuple[int, Any]] = []
        """The frames of a delivery that is not complete yet."""
        self._bytes_left = 0
        """Of its body."""

    async def put(self, item: tuple[int, Any]) -> None:
        if not self.take(item[1], item[0]):
            held, self._delivery = self._delivery, []
            for frame in (*held, item):
                await super().put(frame)

    def take(self, frame: Any, size: int) -> bool:
        """Take a frame at once, if it is one of a delivery or a confirm, and none waits before it."""
        if self._delivery:
            return self._take_content(frame, size)
        if not self.empty() or self._channel.is_closed:
            return False
        if isinstance(frame, Basic.Deliver):
            self._delivery.append((size, frame))
            return True
        if isinstance(frame, Basic.Ack) and not frame.multiple and frame.delivery_tag in self._channel.confirmations:
            self._channel._confirm_delivery(frame.delivery_tag, frame)
            return True
        return False

    def _take_content(self, frame: Any, size: int) -> bool:
        if len(self._delivery) == 1 and isinstance(frame, ContentHeader):
            self._bytes_left = frame.body_size
        elif len(self._delivery) > 1 and isinstance(frame, ContentBody):
            self._bytes_left -= len(frame.value)
        else:
            return False
        self._delivery.append((size, frame))
        if self._bytes_left <= 0:
            (_, delivery), (_, header), *bodies = self._delivery
            self._delivery = []
            self._channel.deliver(DeliveredMessage(delivery, header, b"".join(body.value for _, body in bodies), self._channel))
        return True


class DirectChannel(Channel):
    """`newest_delivery`: the tag of the message that has arrived last."""

    newest_delivery = 0

    def __init__(self, connector: AbstractConnection, number: int, **options: Any) -> None:
        super().__init__(connector, number, **options)
        self.frames: FrameQueue = FrameQueue(self, self.frames.maxsize)
        reader = getattr(connector._transport_factory, "reader", None)  # type: ignore[attr-defined]
        if reader:
            reader.connection = connector

    def deliver(self, message: DeliveredMessage) -> None:
        """Start the consumer of a message. One without a consumer is left to the broker, as the library does. Never raises."""
        self.newest_delivery = message.delivery_tag or 0
        consumer = self.consumers.get(message.consumer_tag or "")
        try:
            if isinstance(consumer, partial) and consumer.func is deliver and isinstance(starter := consumer.args[0], TaskStarter):
                starter.start(ReceivedMessage(message, **consumer.keywords))
            elif consumer:
                self.create_task(consumer(message)).add_done_callback(self._on_consumer_done)
        except Exception:
            log.exception("delivery.not_started")
