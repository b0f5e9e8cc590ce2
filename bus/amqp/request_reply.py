"""Request and reply: one reply queue per process, a map from correlation id to pending reply, many requests in flight.

A streamed reply is a sequence of numbered deltas, then the result.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic_core import from_json

from bus.amqp import signing
from bus.amqp.exclusive_queue import consume_exclusive
from bus.amqp.messages import OutboundMessage, build_cancel, build_command
from bus.amqp.propagation import propagated_headers
from bus.amqp.publisher import Publisher
from bus.masking import mask_error
from contracts.broker_names import work_queue
from contracts.fault import Fault
from contracts.wire import Header

log = structlog.get_logger()


class StreamGap(Exception):
    """A delta is missing, or the step was started again after some deltas had been yielded."""


@dataclass(frozen=True)
class ReplyChunk:
    """A part of a streamed reply: the fields of a delta, or (`final`) of the result."""

    body: dict[str, Any]
    final: bool = False


@dataclass
class ReplyStream:
    """The deltas of one reply. `count`: how many were yielded."""

    queue: "asyncio.Queue[dict[str, Any] | None]" = field(default_factory=asyncio.Queue)
    count: int = 0

    def put(self, body: dict[str, Any]) -> None:
        self.queue.put_nowait(body)

    def end(self) -> None:
        self.queue.put_nowait(None)

    async def chunks(self, seconds: float) -> AsyncIterator[ReplyChunk]:
        """The deltas until the reply has arrived. Raises StreamGap, and TimeoutError when it has not after `seconds`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (body := await asyncio.wait_for(self.queue.get(), deadline - loop.time())) is not None:
            self.check_sequence(body.get("sequence"))
            self.count += 1
            yield ReplyChunk(body)

    def check_sequence(self, sequence: Any) -> None:
        """Raises StreamGap unless `sequence` is the next number."""
        if sequence != self.count:
            raise StreamGap(
                f"delta {self.count} was expected, {sequence} was received: a part is lost, or the step was restarted; try again"
            )


class ReplyFault(Exception):
    """The step answered with a fault."""

    def __init__(self, fault: Fault, job_id: str | None = None) -> None:
        super().__init__(f"{fault.code}: {fault.message}")
        self.fault, self.job_id = fault, job_id


class ReplyTimeout(Exception):
    """No reply in time. The job continues until its deadline; its result can be read by `job_id`, which is None for a query."""

    def __init__(self, job_id: str | None, seconds: float) -> None:
        super().__init__(f"no reply within {seconds:g} s" + (f"; the job is {job_id}" if job_id else ""))
        self.job_id = job_id


ReplyFuture = asyncio.Future[dict[str, Any]]


@dataclass
class PendingReply:
    """A reply that is awaited by `waiter_count` callers."""

    future: ReplyFuture
    waiter_count: int = 0
    stream: ReplyStream | None = None


class RequestClient:
    """Publishes commands and completes the pending reply of each when its message arrives."""

    def __init__(self, publisher: Publisher, reply_queue: str) -> None:
        self._publisher, self.reply_queue = publisher, reply_queue
        self._pending: dict[str, PendingReply] = {}
        self.late_replies = 0

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    async def request(
        self, step: str, body: dict[str, Any], *, seconds: float, tenant: str | None = None, job_id: str | None = None
    ) -> dict[str, Any]:
        """Publish a command with a deadline and await the fields of its result. A cancelled caller cancels the job.

        `job_id`: a new id, for a caller that must know it beforehand. Raises ReplyFault, ReplyTimeout, PublishError.
        """
        job_id = job_id or str(uuid4())
        command = self._build_command(job_id, step, body, seconds, tenant)
        with self.expect_reply(job_id) as reply:
            try:
                await self._publisher.publish(command)
                return await self.wait_for(seconds, job_id, reply)
            except asyncio.CancelledError:
                await asyncio.shield(self.cancel(job_id))
                raise

    async def stream(
        self, step: str, body: dict[str, Any], *, seconds: float, tenant: str | None = None, job_id: str | None = None
    ) -> AsyncGenerator[ReplyChunk]:
        """Publish a command and yield each delta, then the result. A caller that closes the generator early (`aclosing`) cancels the job.

        Raises ReplyFault (`stream-broken` when a delta is missing), ReplyTimeout, PublishError.
        """
        job_id = job_id or str(uuid4())
        command = self._build_command(job_id, step, body, seconds, tenant)
        with self.expect_reply(job_id) as reply:
            stream = self._pending[job_id].stream = ReplyStream()
            try:
                await self._publisher.publish(command)
                async for chunk in stream.chunks(seconds):
                    yield chunk
                result = reply.result()
                stream.check_sequence(result.get("deltas", stream.count))
                yield ReplyChunk(result, final=True)
            except StreamGap as gap:
                raise ReplyFault(Fault(code="stream-broken", message=str(gap), step=step), job_id) from gap
            except TimeoutError:
                raise ReplyTimeout(job_id, seconds) from None
            finally:
                if not reply.done():
                    await asyncio.shield(self.cancel(job_id))

    async def send(self, step: str, body: dict[str, Any], *, seconds: float, tenant: str | None = None, job_id: str) -> None:
        """Publish a command with a deadline, without awaiting its reply. Raises PublishError."""
        await self._publisher.publish(replace(self._build_command(job_id, step, body, seconds, tenant), reply_to=None))

    async def has_consumer(self, step: str) -> bool:
        """Whether a worker serves the step now. Raises PublishError when the broker is unavailable."""
        return await self._publisher.consumer_count(work_queue(step)) > 0

    def _build_command(self, job_id: str, step: str, body: dict[str, Any], seconds: float, tenant: str | None) -> OutboundMessage:
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        headers = propagated_headers() | {Header.DEADLINE.value: deadline.isoformat()} | ({Header.TENANT.value: tenant} if tenant else {})
        return build_command(step, body, message_id=job_id, job_id=job_id, headers=headers, reply_to=self.reply_queue)

    @contextmanager
    def expect_reply(self, job_id: str) -> Iterator[ReplyFuture]:
        """Await the reply to a job inside the block. Several callers may await the same one."""
        pending = self._pending.setdefault(job_id, PendingReply(asyncio.get_running_loop().create_future()))
        pending.waiter_count += 1
        try:
            yield pending.future
        finally:
            pending.waiter_count -= 1
            if not pending.waiter_count:
                del self._pending[job_id]
                if pending.future.done():
                    pending.future.exception()  # marks a fault that nobody awaits as retrieved

    async def wait_for(self, seconds: float, job_id: str, reply: ReplyFuture) -> dict[str, Any]:
        """The fields of the result. Raises ReplyFault and ReplyTimeout; after a timeout the reply may be awaited again."""
        done, _ = await asyncio.wait({reply}, timeout=seconds)
        if not done:
            raise ReplyTimeout(job_id, seconds)
        return reply.result()

    async def cancel(self, job_id: str) -> None:
        await self._publisher.publish(build_cancel(job_id))

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        """Complete a pending reply, or add a delta to it. A message that nobody awaits is counted, an unsigned one dropped."""
        if signing.is_refused(message, "reply"):
            return
        job_id, kind = message.correlation_id or "", message.type or ""
        pending = self._pending.get(job_id)
        if pending is None or pending.future.done():
            self.late_replies += 1
            log.info("reply.late", job_id=job_id)
            return
        body = decode_reply(message.body, kind)
        if kind.endswith(".delta.v1") and not isinstance(body, Fault):
            if pending.stream:
                pending.stream.put(body)
            return
        if isinstance(body, Fault):
            pending.future.set_exception(ReplyFault(body, job_id))
        else:
            pending.future.set_result(body)
        if pending.stream:
            pending.stream.end()


def decode_reply(body: bytes, kind: str) -> dict[str, Any] | Fault:
    """The fields of a reply, or its fault: `reply-unreadable` for one that is not an object, or not the fault that its type says."""
    try:
        fields = from_json(body)
        if not isinstance(fields, dict):
            raise ValueError(f"the reply is not a JSON object: {type(fields).__name__}")
        return Fault.model_validate(fields) if kind == "fault.v1" else fields
    except ValueError as error:
        return Fault(code="reply-unreadable", message=mask_error(error)[:500], step="gateway")


@asynccontextmanager
async def open_request_client(publisher: Publisher) -> AsyncIterator[RequestClient]:
    """A client with a reply queue of its own: classic, exclusive, deleted with this process."""
    client = RequestClient(publisher, f"atelier.reply.{uuid4()}")
    async with publisher.channel() as channel:
        queue = await channel.declare_queue(client.reply_queue, exclusive=True, auto_delete=True)
        await consume_exclusive(queue, client.on_message)
        yield client
