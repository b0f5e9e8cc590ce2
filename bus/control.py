"""A word to every process at once: cancel a job (noted in the inbox for commands of it that are still to come), or say who is there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.cancellations import Cancellations
from bus.errors import PublishError
from bus.inbox import Inbox
from bus.letters import Letter
from bus.outbox import Outbox
from bus.roll_call import ROLL_TYPE, answer_letter
from contracts import channels
from contracts.control import Control
from contracts.presence import Presence, RollCall

Tell = Callable[[], Awaitable[Presence]]

log = structlog.get_logger()


def cancel_letter(job_id: str) -> Letter:
    return Letter(channels.CONTROL, "", Control(cancel=job_id).model_dump_json().encode(), str(uuid4()), job_id, "control.v1")


async def answer(outbox: Outbox, tell: Tell, reply_to: str) -> None:
    """Whoever asked may be gone, and the question is of use only now: an answer that cannot be sent is let be."""
    try:
        await outbox.post(answer_letter(await tell(), reply_to))
    except PublishError as error:
        log.info("presence.untold", error=str(error))


@asynccontextmanager
async def open_control(outbox: Outbox, inbox: Inbox, cancellations: Cancellations, tell: Tell | None = None) -> AsyncIterator[None]:
    """Take control messages. One that is none of ours is ignored."""

    async def take(message: AbstractIncomingMessage) -> None:
        try:
            if tell and message.reply_to and message.type == ROLL_TYPE:
                RollCall.model_validate_json(message.body)
                await answer(outbox, tell, message.reply_to)
                return
            job_id = Control.model_validate_json(message.body).cancel
        except ValueError:
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
