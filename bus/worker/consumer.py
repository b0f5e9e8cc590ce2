"""The life of one delivery: parse, expired or cancelled?, known?, handle, remember, publish, ack.

Remember, then publish, then ack: every stop may run twice, none may be lost, and the effect happens once.
"""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog
from aio_pika.abc import AbstractIncomingMessage
from structlog.contextvars import bind_contextvars

from bus.actor import Actor, Context, Handler, Transactional
from bus.amqp.publisher import Publisher
from bus.delivery import Delivery
from bus.errors import CallerGone, EngineCrashed, PermanentError, PublishError, TemporaryError, UnroutableMessage
from bus.observability import metrics, tracing
from bus.outcome import (
    CANCELLED,
    EXPIRED,
    DeadLettered,
    Done,
    Dropped,
    Outcome,
    Requeue,
    Retry,
    after_error,
    drop_if_past_deadline,
    fault_from_error,
    precheck,
)
from bus.persistence.inbox import Inbox, InboxEntry, PostgresInbox
from bus.settings import BusSettings
from bus.worker import outgoing
from bus.worker.cancellation import CancellableRun, CancellationRegistry
from bus.worker.decoding import decode_command
from bus.worker.outgoing import StepRun
from contracts.event import Progress
from contracts.fault import Fault
from contracts.wire_model import WireModel

log = structlog.get_logger()


@dataclass(frozen=True)
class DeliveryConsumer:
    """One actor at its counter: everything a delivery of its needs."""

    actor: Actor
    handler: Handler
    inbox: Inbox
    publisher: Publisher
    cancellations: CancellationRegistry
    settings: BusSettings
    crash_retry_lock: asyncio.Lock

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        """Carry one delivery from its arrival to its ack."""
        with metrics.labelled_child(metrics.IN_FLIGHT, self.actor.step).track_inprogress():
            await self._process_traced(message)

    async def _process_traced(self, message: AbstractIncomingMessage) -> None:
        with tracing.trace_delivery(self.actor.step, Delivery.from_message(message, self.actor.queue)) as (delivery, span):
            tracing.set_outcome(span, await self._process(message, delivery))

    async def _process(self, message: AbstractIncomingMessage, delivery: Delivery) -> Outcome:
        delivery = delivery if self.actor.enforce_deadline else replace(delivery, deadline=None)
        if named := delivery.log_fields:
            bind_contextvars(**named)
        work = StepRun(
            delivery,
            self.actor.step,
            self.settings.worker,
            outgoing.read_slip(delivery.body),
            datetime.now(UTC),
            emit_events=self.actor.emit_events,
        )
        started = time.perf_counter()
        outcome = await self._decide(work)
        work = replace(work, seconds=round(time.perf_counter() - started, 6))
        try:
            await self._publish_outcome(work, outcome)
        except Exception as error:
            outcome = self._after_error(
                PermanentError("internal-error", f"what follows from the outcome could not be said: {error!r}"), work
            )
            await self._publish_outcome(replace(work, slip=None), outcome)
        await _acknowledge(message, outcome)
        _log_outcome(work, outcome)
        waited = outgoing.queued_seconds(work)
        metrics.record_delivery(work.step, outcome, attempt=delivery.attempt, seconds=work.seconds, queued_seconds=waited)
        return outcome

    async def _decide(self, run: StepRun) -> Outcome:
        try:
            command = decode_command(run.delivery, self.actor, self.settings.max_body_bytes)
            async with self._hold_crash_retry_lock(run.delivery) if run.delivery.redelivery_count else nullcontext():
                return await self._decide_deduplicated(run, command)
        except Exception as error:
            return self._after_error(error, run)

    @asynccontextmanager
    async def _hold_crash_retry_lock(self, delivery: Delivery) -> AsyncIterator[None]:
        """Work that was in hand when a process died runs with no other such work beside it, the most often struck last.

        So the next death has one suspect, and its neighbours are done before it comes.
        """
        deaths = await self.inbox.crash_count(self.actor.step, delivery.message_id, delivery.redelivery_count)
        if not deaths:
            yield
            return
        await asyncio.sleep(min(deaths, 10) * CRASH_RETRY_WAIT_SECONDS)
        async with self.crash_retry_lock:
            yield

    async def _decide_deduplicated(self, run: StepRun, command: WireModel) -> Outcome:
        delivery, step = run.delivery, self.actor.step
        known = await self.inbox.acquire(step, delivery.message_id, delivery.job_id)
        if known.result is not None:
            return Done(self.actor.result.model_validate(known.result))
        try:
            outcome = self._precheck(delivery, known) or await self._run_handler(run, command)
        except BaseException:
            await asyncio.shield(self.inbox.release(step, delivery.message_id))
            raise
        if not isinstance(outcome, Done):
            await self.inbox.release(step, delivery.message_id)
        return outcome

    def _precheck(self, delivery: Delivery, entry: InboxEntry) -> Outcome | None:
        """What tells of a job beside its way is not cancelled with it: the backend is to hear that it was."""
        return precheck(
            step=self.actor.step,
            attempt=delivery.attempt,
            crash_count=self._crash_count(delivery, entry),
            delivery_limit=self.settings.delivery_limit,
            deadline=delivery.deadline,
            now=datetime.now(UTC),
            cancelled=entry.cancelled and not delivery.detached,
        )

    def _crash_count(self, delivery: Delivery, entry: InboxEntry) -> int:
        """How often the work has ended its process.

        A memory of who was at work outranks the broker's count, which strikes all who were in hand. But that count is the net
        below it, since RabbitMQ 4 drops a message that came back 20 times.
        """
        net = min(19, 2 * self.settings.delivery_limit)
        remembered = isinstance(self.inbox, PostgresInbox) and delivery.redelivery_count < net
        return entry.crash_count if remembered else delivery.redelivery_count

    async def _run_handler(self, run: StepRun, command: WireModel) -> Outcome:
        """Run the handler within its time, and remember its result."""
        delivery = run.delivery
        with nullcontext(CancellableRun()) if delivery.detached else self.cancellations.track(delivery.job_id) as watched:
            try:
                async with asyncio.timeout(self._seconds_left(delivery)) as limit:
                    returned = await self.handler(command, self._build_context(run))
            except asyncio.CancelledError:
                if _is_delivery_cancelled(watched):
                    raise
                if not watched.cancelled:
                    raise EngineCrashed("the handler was cancelled from within") from None
                return Dropped(self._fault(run, CANCELLED, "The job was cancelled while it was at work."))
            except TimeoutError:
                if not limit.expired():
                    raise
                return self._after_timeout(run)
        result, write = (returned.result, returned.write) if isinstance(returned, Transactional) else (returned, None)
        try:
            await self.inbox.mark_done(self.actor.step, delivery.message_id, result, write)
        finally:
            if isinstance(returned, Transactional) and returned.after_transaction:
                await returned.after_transaction()
        return Done(result)

    def _build_context(self, run: StepRun) -> Context:
        async def report_progress(progress: Progress) -> None:
            try:
                await self.publisher.publish(*outgoing.build_progress(run, progress))
            except PublishError as error:
                log.warning("progress.lost", job_id=run.delivery.job_id, error=str(error))

        async def send_delta(delta: WireModel) -> None:
            try:
                await self.publisher.publish(outgoing.build_delta(run, delta.model_dump(mode="json")))
            except UnroutableMessage as error:
                raise CallerGone(f"nobody awaits the reply any more: {error}") from error
            except PublishError as error:
                log.warning("delta.lost", job_id=run.delivery.job_id, error=str(error))

        delivery = run.delivery
        heard = send_delta if delivery.reply_to else None
        return Context(delivery.job_id, delivery.message_id, delivery.attempt, delivery.tenant, delivery.deadline, report_progress, heard)

    def _seconds_left(self, delivery: Delivery) -> float:
        left = (delivery.deadline - datetime.now(UTC)).total_seconds() if delivery.deadline else self.actor.timeout_seconds
        return max(0.0, min(left, self.actor.timeout_seconds))

    def _after_timeout(self, run: StepRun) -> Outcome:
        deadline = run.delivery.deadline
        if deadline and datetime.now(UTC) >= deadline:
            return Dropped(self._fault(run, EXPIRED, f"The deadline {deadline.isoformat()} passed during the work."))
        seconds = self.actor.timeout_seconds
        return self._after_error(TemporaryError(f"{self.actor.step} did not finish within {seconds:g} s", code="timeout"), run)

    def _fault(self, run: StepRun, code: str, message: str) -> Fault:
        return Fault(code=code, message=message, step=self.actor.step, attempts=run.delivery.attempt)

    def _after_error(self, error: Exception, run: StepRun) -> Outcome:
        if self.actor.is_query:
            return Dropped(fault_from_error(error, getattr(error, "code", "failed"), self.actor.step, run.delivery.attempt))
        stack = "".join(traceback.format_exception(error))
        delays, rungs = self.settings.retry_delays_seconds, self.settings.delay_queue_seconds
        outcome = after_error(
            error, step=self.actor.step, attempt=run.delivery.attempt, delays=delays, delay_queue_seconds=rungs, stack=stack
        )
        return drop_if_past_deadline(outcome, error, run.delivery.deadline, datetime.now(UTC))

    async def _publish_outcome(self, run: StepRun, outcome: Outcome) -> None:
        if isinstance(outcome, Requeue):
            await asyncio.sleep(REQUEUE_PAUSE_SECONDS)
        if written := outgoing.messages_for_outcome(run, outcome, now=datetime.now(UTC)):
            with tracing.trace_publish(len(written)):
                await self.publisher.publish_until_confirmed(*written)


CRASH_RETRY_WAIT_SECONDS = 0.2
"""For each process that died of it, before work is tried again: whoever is less suspect goes first."""

REQUEUE_PAUSE_SECONDS = 0.5
"""A pause before a message goes back, so that a dead engine is not asked a thousand times a second."""


def _is_delivery_cancelled(cancellable: CancellableRun) -> bool:
    """True when this very delivery is being cancelled, as on shutdown, and not only its job."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > cancellable.cancelled


async def _acknowledge(message: AbstractIncomingMessage, outcome: Outcome) -> None:
    """Ack, or give back. When the channel is gone the broker has the message already, and the inbox knows what was done."""
    try:
        if isinstance(outcome, Requeue):
            await message.reject(requeue=True)
        else:
            await message.channel.basic_ack(message.delivery_tag or 0, wait=False)
    except Exception as error:
        log.info("delivery.unsettled", message_id=message.message_id, error=repr(error))


def _log_outcome(run: StepRun, outcome: Outcome) -> None:
    """One line a stop."""
    delivery = run.delivery
    fields = {
        "step": run.step,
        "job_id": delivery.job_id,
        "message_id": delivery.message_id,
        "attempt": delivery.attempt,
        "seconds": run.seconds,
    }
    match outcome:
        case Done():
            log.info("stop.done", **fields)
        case Retry(delay, fault):
            log.warning("stop.retry", delay_seconds=delay, cause=fault.message, **fields)
        case DeadLettered(fault):
            log.error("stop.dead", code=fault.code, cause=fault.message, **fields)
        case Dropped(fault):
            log.warning("stop.dropped", code=fault.code, **fields)
        case Requeue(reason):
            log.warning("stop.requeued", reason=reason, **fields)
