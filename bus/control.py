"""Cancel a job: a word to every process at once, noted in the inbox for commands of the job that are still to come."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.cancellations import Cancellations
from bus.inbox import Inbox
from bus.letters import Letter
from bus.outbox import Outbox
from contracts import channels

log = structlog.get_logger()


def cancel_letter(job_id: str) -> Letter:
    return Letter(channels.CONTROL, "", json.dumps({"cancel": job_id}).encode(), str(uuid4()), job_id, "control.v1")


@asynccontextmanager
async def open_control(outbox: Outbox, inbox: Inbox, cancellations: Cancellations) -> AsyncIterator[None]:
    """Take control messages. One that is none of ours is ignored."""

    async def take(message: AbstractIncomingMessage) -> None:
        try:
            job_id = str(json.loads(message.body)["cancel"])
        except (ValueError, TypeError, KeyError):
            log.warning("control.unreadable", size=len(message.body))
            return
        await inbox.cancel(job_id)
        if stopped := cancellations.cancel(job_id):
            log.info("job.cancelled", job_id=job_id, runs=stopped)

    async with outbox.channel() as channel:
        queue = await channel.declare_queue(f"atelier.control.{uuid4()}", exclusive=True, auto_delete=True)
        await queue.bind(channels.CONTROL)
        await queue.consume(take, no_ack=True)
        yield
