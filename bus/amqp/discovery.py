"""Discovery: asks every worker for its status at once, and the broker for the depth of queues."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic import ValidationError

from bus.amqp import signing
from bus.amqp.exclusive_queue import consume_exclusive, declare_exclusive_queue
from bus.amqp.messages import OutboundMessage
from bus.amqp.publisher import Publisher
from bus.amqp.topology import QueueDepth, read_queue_depth
from contracts import broker_names
from contracts.discovery import DiscoveryRequest, WorkerStatus

DISCOVERY_TYPE, STATUS_TYPE = "roll-call.v1", "presence.v1"
REPLY_WAIT_SECONDS = 0.4
"""How long to wait for another reply after each one."""

log = structlog.get_logger()


def build_status_reply(status: WorkerStatus, reply_to: str) -> OutboundMessage:
    return OutboundMessage("", reply_to, status.model_dump_json(exclude_none=True).encode(), str(uuid4()), "", STATUS_TYPE)


async def discover_workers(publisher: Publisher, seconds: float) -> list[WorkerStatus]:
    """The status of every worker that replies within `seconds`; returns earlier once replies cease. Raises PublishError."""
    statuses: list[WorkerStatus] = []
    received = asyncio.Event()

    async def on_message(message: AbstractIncomingMessage) -> None:
        if signing.is_refused(message, "status"):
            return
        try:
            statuses.append(WorkerStatus.model_validate_json(message.body))
        except ValidationError as error:
            log.warning("status.invalid", error=str(error))
        received.set()

    async with publisher.channel() as channel:
        queue = await declare_exclusive_queue(channel, "atelier.roll")
        await consume_exclusive(queue, on_message)
        await publisher.publish(_build_request(queue.name))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await received.wait()
                while received.is_set():
                    received.clear()
                    await asyncio.sleep(REPLY_WAIT_SECONDS)
    return sorted(statuses, key=lambda status: status.worker)


def _build_request(reply_to: str) -> OutboundMessage:
    body = DiscoveryRequest().model_dump_json().encode()
    return OutboundMessage(broker_names.CONTROL_EXCHANGE, "", body, str(uuid4()), "", DISCOVERY_TYPE, reply_to=reply_to)


async def queue_depths(publisher: Publisher, queues: Iterable[str]) -> dict[str, QueueDepth | None]:
    """The depth of each queue; None for one that does not exist."""

    async def read(queue: str) -> QueueDepth | None:
        async with publisher.channel() as channel:
            return await read_queue_depth(channel, queue)

    names = list(queues)
    return dict(zip(names, await asyncio.gather(*map(read, names)), strict=True))
