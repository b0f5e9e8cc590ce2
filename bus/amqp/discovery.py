"""Ask every process of actors at once who is there, and the broker how long its queues are."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity
from pydantic import ValidationError

from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher
from contracts import broker_names
from contracts.discovery import DiscoveryRequest, WorkerStatus

log = structlog.get_logger()

LAST_ANSWER_WAIT_SECONDS = 0.4
"""After an answer; whoever is slower than that is heard the next time."""

DISCOVERY_TYPE, STATUS_TYPE = "roll-call.v1", "presence.v1"


@dataclass(frozen=True)
class QueueDepth:
    """What a queue holds that nobody has in hand, and how many take from it."""

    ready: int
    consumers: int


def build_status_reply(presence: WorkerStatus, reply_to: str) -> OutboundMessage:
    return OutboundMessage("", reply_to, presence.model_dump_json(exclude_none=True).encode(), str(uuid4()), "", STATUS_TYPE)


async def discover_workers(publisher: Publisher, seconds: float) -> list[WorkerStatus]:
    """Everybody who answers within so many seconds; no longer than it takes until nobody else does. Raises PublishError."""
    heard: list[WorkerStatus] = []
    another = asyncio.Event()

    async def on_message(message: AbstractIncomingMessage) -> None:
        try:
            heard.append(WorkerStatus.model_validate_json(message.body))
        except ValidationError as error:
            log.warning("presence.unreadable", error=str(error))
        another.set()

    async with publisher.channel() as channel:
        queue = await channel.declare_queue(f"atelier.roll.{uuid4()}", exclusive=True, auto_delete=True)
        await queue.consume(on_message, no_ack=True)
        question = DiscoveryRequest().model_dump_json().encode()
        await publisher.publish(
            OutboundMessage(broker_names.CONTROL_EXCHANGE, "", question, str(uuid4()), "", DISCOVERY_TYPE, reply_to=queue.name)
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await another.wait()
                while another.is_set():
                    another.clear()
                    await asyncio.sleep(LAST_ANSWER_WAIT_SECONDS)
    return sorted(heard, key=lambda presence: presence.worker)


async def queue_depths(publisher: Publisher, queues: Iterable[str]) -> dict[str, QueueDepth | None]:
    """None for a queue that is not there."""
    names = list(queues)
    return dict(zip(names, await asyncio.gather(*(_queue_depth(publisher, name) for name in names)), strict=True))


async def _queue_depth(publisher: Publisher, name: str) -> QueueDepth | None:
    try:
        async with publisher.channel() as channel:
            counted = (await channel.declare_queue(name, passive=True)).declaration_result
    except ChannelNotFoundEntity:
        return None
    return QueueDepth(counted.message_count or 0, counted.consumer_count or 0)
