"""Request and reply: one reply queue for this process, a map from correlation id to whoever waits, many requests in flight."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic_core import from_json

from bus.amqp.messages import OutboundMessage, build_cancel, build_command
from bus.amqp.propagation import propagated_headers
from bus.amqp.publisher import Publisher
from contracts.broker_names import work_queue
from contracts.fault import Fault
from contracts.wire import Header


class StreamGap(Exception):
    """A delta is missing, or the work began anew after a part of it was given out."""


@dataclass(frozen=True)
class ReplyChunk:
    """A part of a streamed reply: a delta's fields, or at last the result's."""

    body: dict[str, Any]
    final: bool = False


@dataclass
class ReplyStream:
    """The deltas of one reply. `count`: how many were given out."""

    queue: "asyncio.Queue[dict[str, Any] | None]" = field(default_factory=asyncio.Queue)
    count: int = 0

    def put(self, body: dict[str, Any]) -> None:
        self.queue.put_nowait(body)

    def end(self) -> None:
        self.queue.put_nowait(None)

    async def chunks(self, seconds: float) -> AsyncIterator[ReplyChunk]:
        """Until the reply is there. Raises Gap, and TimeoutError when it is not there in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (body := await asyncio.wait_for(self.queue.get(), until - loop.time())) is not None:
            self.check_sequence(body.get("sequence"))
            self.count += 1
            yield ReplyChunk(body)

    def check_sequence(self, sequence: Any) -> None:
        """Raises Gap unless `number` comes next."""
        if sequence != self.count:
            raise StreamGap(f"delta {self.count} was to come, {sequence} came: a part is lost, or the work began anew; ask again")


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


ReplyFuture = asyncio.Future[dict[str, Any]]


@dataclass
class PendingReply:
    """A reply to come, and how many await it."""

    future: ReplyFuture
    waiter_count: int = 0
    stream: ReplyStream | None = None


class RequestClient:
    """Sends commands and hands each reply to whoever waits for it."""

    def __init__(self, publisher: Publisher, reply_queue: str) -> None:
        self._publisher, self.reply_queue = publisher, reply_queue
        self._pending: dict[str, PendingReply] = {}
        self.late_replies = 0

    @property
    def pending_count(self) -> int:
        """How many replies are awaited."""
        return len(self._pending)

    async def request(
        self, step: str, body: dict[str, Any], *, seconds: float, tenant: str | None = None, job_id: str | None = None
    ) -> dict[str, Any]:
        """Send a command and await the result's fields. The deadline travels along; whoever stops waiting cancels the work.

        `job_id`: a new one, for whoever wants to know it. Raises ReplyFault, ReplyTimeout, PublishError.
        """
        job_id = job_id or str(uuid4())
        letter = self._build_command(job_id, step, body, seconds, tenant)
        with self.expect_reply(job_id) as reply:
            try:
                await self._publisher.publish(letter)
                return await self.wait_for(seconds, job_id, reply)
            except asyncio.CancelledError:
                await asyncio.shield(self.cancel(job_id))
                raise

    async def stream(
        self, step: str, body: dict[str, Any], *, seconds: float, tenant: str | None = None, job_id: str | None = None
    ) -> AsyncGenerator[ReplyChunk]:
        """Send a command and yield each delta, then the result. Whoever leaves before the end (`aclosing`) cancels the work.

        Raises ReplyFault (`stream-broken` when a delta is missing), ReplyTimeout, PublishError.
        """
        job_id = job_id or str(uuid4())
        letter = self._build_command(job_id, step, body, seconds, tenant)
        with self.expect_reply(job_id) as reply:
            deltas = self._pending[job_id].stream = ReplyStream()
            try:
                await self._publisher.publish(letter)
                async for piece in deltas.chunks(seconds):
                    yield piece
                result = reply.result()
                deltas.check_sequence(result.get("deltas", deltas.count))
                yield ReplyChunk(result, final=True)
            except StreamGap as gap:
                raise ReplyFault(Fault(code="stream-broken", message=str(gap), step=step), job_id) from gap
            except TimeoutError:
                raise ReplyTimeout(job_id, seconds) from None
            finally:
                if not reply.done():
                    await asyncio.shield(self.cancel(job_id))

    async def has_consumer(self, step: str) -> bool:
        """Whether anyone takes this step's commands now. Raises PublishError when the broker is away."""
        return await self._publisher.consumer_count(work_queue(step)) > 0

    def _build_command(self, job_id: str, step: str, body: dict[str, Any], seconds: float, tenant: str | None) -> OutboundMessage:
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        headers = propagated_headers() | {Header.DEADLINE.value: deadline.isoformat()} | ({Header.TENANT.value: tenant} if tenant else {})
        return build_command(step, body, message_id=job_id, job_id=job_id, headers=headers, reply_to=self.reply_queue)

    @contextmanager
    def expect_reply(self, job_id: str) -> Iterator[ReplyFuture]:
        """The reply to a job, from now on. Several may await the same one."""
        waiter = self._pending.setdefault(job_id, PendingReply(asyncio.get_running_loop().create_future()))
        waiter.waiter_count += 1
        try:
            yield waiter.future
        finally:
            waiter.waiter_count -= 1
            if not waiter.waiter_count:
                del self._pending[job_id]
                if waiter.future.done():
                    waiter.future.exception()  # A fault that nobody awaits any more is no surprise.

    async def wait_for(self, seconds: float, job_id: str, reply: ReplyFuture) -> dict[str, Any]:
        """The result's fields. Raises ReplyFault and ReplyTimeout; the reply itself may still be awaited after that."""
        done, _ = await asyncio.wait({reply}, timeout=seconds)
        if not done:
            raise ReplyTimeout(job_id, seconds)
        return reply.result()

    async def cancel(self, job_id: str) -> None:
        await self._publisher.publish(build_cancel(job_id))

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        """A reply has come, or a delta of one. What nobody awaits any more is counted."""
        job_id, kind = message.correlation_id or "", message.type or ""
        waiter = self._pending.get(job_id)
        if waiter is None or waiter.future.done():
            self.late_replies += 1
            log.info("reply.late", job_id=job_id)
            return
        try:
            body = from_json(message.body)
        except ValueError as error:
            body, kind = Fault(code="reply-unreadable", message=str(error), step="gateway").model_dump(), "fault.v1"
        if kind.endswith(".delta.v1"):
            if waiter.stream:
                waiter.stream.put(body)
            return
        if kind == "fault.v1":
            waiter.future.set_exception(ReplyFault(Fault.model_validate(body), job_id))
        else:
            waiter.future.set_result(body)
        if waiter.stream:
            waiter.stream.end()


@asynccontextmanager
async def open_request_client(publisher: Publisher) -> AsyncIterator[RequestClient]:
    """A reply queue with a name of its own: classic, exclusive, gone with this process."""
    requests = RequestClient(publisher, f"atelier.reply.{uuid4()}")

    async with publisher.channel() as channel:
        queue = await channel.declare_queue(requests.reply_queue, exclusive=True, auto_delete=True)
        await queue.consume(requests.on_message, no_ack=True)
        yield requests
