"""Request and reply: one reply queue for this process, a map from correlation id to whoever waits, many requests in flight."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic_core import from_json

from bus.control import cancel_letter
from bus.letters import Letter, command_letter
from bus.outbox import Outbox
from bus.streaming import Deltas, Gap, Piece
from bus.travelling import travelling
from contracts.channels import work_queue
from contracts.fault import Fault
from contracts.wire import Header

log = structlog.get_logger()


class ReplyFault(Exception):
    """The step answered with a fault."""

    def __init__(self, fault: Fault, job_id: str | None = None) -> None:
        super().__init__(f"{fault.code}: {fault.message}")
        self.fault, self.job_id = fault, job_id


class ReplyTimeout(Exception):
    """No reply came in time. The job goes on, unless its deadline stops it; ask for it again by its id. None: it was a mere question."""

    def __init__(self, job_id: str | None, seconds: float) -> None:
        super().__init__(f"no reply within {seconds:g} s" + (f"; the job is {job_id}" if job_id else ""))
        self.job_id = job_id


Reply = asyncio.Future[dict[str, Any]]


@dataclass
class Waiter:
    """A reply to come, and how many await it."""

    reply: Reply
    heads: int = 0
    deltas: Deltas | None = None


class Requests:
    """Sends commands and hands each reply to whoever waits for it."""

    def __init__(self, outbox: Outbox, reply_queue: str) -> None:
        self._outbox, self.reply_queue = outbox, reply_queue
        self._waiting: dict[str, Waiter] = {}
        self.late_replies = 0

    @property
    def waiting(self) -> int:
        """How many replies are awaited."""
        return len(self._waiting)

    async def request(
        self, step: str, body: dict[str, Any], *, seconds: float, tenant: str | None = None, job_id: str | None = None
    ) -> dict[str, Any]:
        """Send a command and await the result's fields. The deadline travels along; whoever stops waiting cancels the work.

        `job_id`: a new one, for whoever wants to know it. Raises ReplyFault, ReplyTimeout, PublishError.
        """
        job_id = job_id or str(uuid4())
        letter = self._letter(job_id, step, body, seconds, tenant)
        with self.expect(job_id) as reply:
            try:
                await self._outbox.post(letter)
                return await self.within(seconds, job_id, reply)
            except asyncio.CancelledError:
                await asyncio.shield(self.cancel(job_id))
                raise

    async def stream(
        self, step: str, body: dict[str, Any], *, seconds: float, tenant: str | None = None, job_id: str | None = None
    ) -> AsyncGenerator[Piece]:
        """Send a command and yield each delta, then the result. Whoever leaves before the end (`aclosing`) cancels the work.

        Raises ReplyFault (`stream-broken` when a delta is missing), ReplyTimeout, PublishError.
        """
        job_id = job_id or str(uuid4())
        letter = self._letter(job_id, step, body, seconds, tenant)
        with self.expect(job_id) as reply:
            deltas = self._waiting[job_id].deltas = Deltas()
            try:
                await self._outbox.post(letter)
                async for piece in deltas.each(seconds):
                    yield piece
                result = reply.result()
                deltas.check(result.get("deltas", deltas.count))
                yield Piece(result, final=True)
            except Gap as gap:
                raise ReplyFault(Fault(code="stream-broken", message=str(gap), step=step), job_id) from gap
            except TimeoutError:
                raise ReplyTimeout(job_id, seconds) from None
            finally:
                if not reply.done():
                    await asyncio.shield(self.cancel(job_id))

    async def served(self, step: str) -> bool:
        """Whether anyone takes this step's commands now. Raises PublishError when the broker is away."""
        return await self._outbox.consumers(work_queue(step)) > 0

    def _letter(self, job_id: str, step: str, body: dict[str, Any], seconds: float, tenant: str | None) -> Letter:
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        headers = travelling() | {Header.DEADLINE.value: deadline.isoformat()} | ({Header.TENANT.value: tenant} if tenant else {})
        return command_letter(step, body, message_id=job_id, job_id=job_id, headers=headers, reply_to=self.reply_queue)

    @contextmanager
    def expect(self, job_id: str) -> Iterator[Reply]:
        """The reply to a job, from now on. Several may await the same one."""
        waiter = self._waiting.setdefault(job_id, Waiter(asyncio.get_running_loop().create_future()))
        waiter.heads += 1
        try:
            yield waiter.reply
        finally:
            waiter.heads -= 1
            if not waiter.heads:
                del self._waiting[job_id]
                if waiter.reply.done():
                    waiter.reply.exception()  # A fault that nobody awaits any more is no surprise.

    async def within(self, seconds: float, job_id: str, reply: Reply) -> dict[str, Any]:
        """The result's fields. Raises ReplyFault and ReplyTimeout; the reply itself may still be awaited after that."""
        done, _ = await asyncio.wait({reply}, timeout=seconds)
        if not done:
            raise ReplyTimeout(job_id, seconds)
        return reply.result()

    async def cancel(self, job_id: str) -> None:
        await self._outbox.post(cancel_letter(job_id))

    async def take(self, message: AbstractIncomingMessage) -> None:
        """A reply has come, or a delta of one. What nobody awaits any more is counted."""
        job_id, kind = message.correlation_id or "", message.type or ""
        waiter = self._waiting.get(job_id)
        if waiter is None or waiter.reply.done():
            self.late_replies += 1
            log.info("reply.late", job_id=job_id)
            return
        try:
            body = from_json(message.body)
        except ValueError as error:
            body, kind = Fault(code="reply-unreadable", message=str(error), step="gateway").model_dump(), "fault.v1"
        if kind.endswith(".delta.v1"):
            if waiter.deltas:
                waiter.deltas.put(body)
            return
        if kind == "fault.v1":
            waiter.reply.set_exception(ReplyFault(Fault.model_validate(body), job_id))
        else:
            waiter.reply.set_result(body)
        if waiter.deltas:
            waiter.deltas.end()


@asynccontextmanager
async def open_requests(outbox: Outbox) -> AsyncIterator[Requests]:
    """A reply queue with a name of its own: classic, exclusive, gone with this process."""
    requests = Requests(outbox, f"atelier.reply.{uuid4()}")

    async with outbox.channel() as channel:
        queue = await channel.declare_queue(requests.reply_queue, exclusive=True, auto_delete=True)
        await queue.consume(requests.take, no_ack=True)
        yield requests
