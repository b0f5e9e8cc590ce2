"""Request and reply: one reply queue for this process, a map from correlation id to whoever waits, many requests in flight."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.control import cancel_letter
from bus.letters import command_letter
from bus.outbox import Outbox
from contracts.fault import Fault
from contracts.wire import Header

log = structlog.get_logger()


class ReplyFault(Exception):
    """The step answered with a fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.code}: {fault.message}")
        self.fault = fault


class ReplyTimeout(Exception):
    """No reply came in time. The job goes on, unless its deadline stops it; ask for it again by its id."""

    def __init__(self, job_id: str, seconds: float) -> None:
        super().__init__(f"no reply within {seconds:g} s; the job is {job_id}")
        self.job_id = job_id


class Requests:
    """Sends commands and hands each reply to whoever waits for it."""

    def __init__(self, outbox: Outbox, reply_queue: str) -> None:
        self._outbox, self.reply_queue = outbox, reply_queue
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.late_replies = 0

    async def request(self, step: str, body: dict[str, Any], *, seconds: float, tenant: str | None = None) -> dict[str, Any]:
        """Send a command and await the result's fields. The deadline travels along; whoever stops waiting cancels the work.

        Raises ReplyFault, ReplyTimeout, PublishError.
        """
        job_id = str(uuid4())
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        headers = {Header.DEADLINE.value: deadline.isoformat()} | ({Header.TENANT.value: tenant} if tenant else {})
        letter = command_letter(step, body, message_id=job_id, job_id=job_id, headers=headers, reply_to=self.reply_queue)
        self._waiting[job_id] = asyncio.get_running_loop().create_future()
        try:
            await self._outbox.post(letter)
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + seconds):
                return await self._waiting[job_id]
        except TimeoutError:
            raise ReplyTimeout(job_id, seconds) from None
        except asyncio.CancelledError:
            await asyncio.shield(self.cancel(job_id))
            raise
        finally:
            del self._waiting[job_id]

    async def cancel(self, job_id: str) -> None:
        await self._outbox.post(cancel_letter(job_id))

    async def take(self, message: AbstractIncomingMessage) -> None:
        """A reply has come. One that nobody awaits any more is counted."""
        waiter = self._waiting.get(message.correlation_id or "")
        if waiter is None or waiter.done():
            self.late_replies += 1
            log.info("reply.late", job_id=message.correlation_id)
            return
        try:
            body = json.loads(message.body)
        except ValueError as error:
            waiter.set_exception(ReplyFault(Fault(code="reply-unreadable", message=str(error), step="gateway")))
            return
        if message.type == "fault.v1":
            waiter.set_exception(ReplyFault(Fault.model_validate(body)))
        else:
            waiter.set_result(body)


@asynccontextmanager
async def open_requests(outbox: Outbox) -> AsyncIterator[Requests]:
    """A reply queue with a name of its own: classic, exclusive, gone with this process."""
    requests = Requests(outbox, f"atelier.reply.{uuid4()}")

    async with outbox.channel() as channel:
        queue = await channel.declare_queue(requests.reply_queue, exclusive=True, auto_delete=True)
        await queue.consume(requests.take, no_ack=True)
        yield requests
