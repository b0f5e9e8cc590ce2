"""Control messages, which every worker receives: cancel a job (now, and for its commands still to come), or report the worker's status."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.amqp import signing
from bus.amqp.discovery import DISCOVERY_TYPE, build_status_reply
from bus.amqp.exclusive_queue import consume_exclusive, declare_exclusive_queue
from bus.amqp.publisher import Publisher
from bus.errors import PublishError
from bus.persistence.inbox import Inbox
from bus.worker.cancellation import CancellationRegistry
from contracts import broker_names
from contracts.control import REVOKED_TYPE, Control
from contracts.discovery import DiscoveryRequest, WorkerStatus

StatusSource = Callable[[], Awaitable[WorkerStatus]]

log = structlog.get_logger()


async def reply_with_status(publisher: Publisher, report_status: StatusSource, reply_to: str) -> None:
    """Publish the status once: the caller may be gone, and a late status is of no use."""
    try:
        await publisher.publish(build_status_reply(await report_status(), reply_to))
    except PublishError as error:
        log.info("status.reply_lost", error=str(error))


@asynccontextmanager
async def open_control(
    publisher: Publisher, inbox: Inbox, cancellations: CancellationRegistry, report_status: StatusSource | None = None
) -> AsyncIterator[None]:
    """Consume control messages. Invalid ones are logged and ignored."""

    async def on_message(message: AbstractIncomingMessage) -> None:
        if message.type == REVOKED_TYPE or signing.is_refused(message, "control"):
            return
        try:
            if report_status and message.reply_to and message.type == DISCOVERY_TYPE:
                if not broker_names.is_reply_queue(message.reply_to):
                    raise ValueError("reply_to names no reply queue")
                DiscoveryRequest.model_validate_json(message.body)
                await reply_with_status(publisher, report_status, message.reply_to)
                return
            job_id = Control.model_validate_json(message.body).cancel
        except ValueError:
            log.warning("control.invalid", size=len(message.body))
            return
        await inbox.cancel(job_id)
        if runs := cancellations.cancel(job_id):
            log.info("job.cancelled", job_id=job_id, runs=runs)

    async with publisher.channel() as channel:
        queue = await declare_exclusive_queue(channel, "atelier.control")
        await queue.bind(broker_names.CONTROL_EXCHANGE)
        await consume_exclusive(queue, on_message)
        yield
