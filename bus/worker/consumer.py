"""The life of one delivery, in `process`: decide its outcome → publish the messages of the outcome → acknowledge → log.

To decide: decode, wait for the crash retry lock, acquire the message in the inbox, precheck, run the handler, mark done.
Mark done, then publish, then acknowledge: each stage may run twice, none is lost, and the effect happens once.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog
from aio_pika.abc import AbstractIncomingMessage
from structlog.contextvars import bind_contextvars

from bus.actor import Actor, Handler, Transactional
from bus.amqp import acknowledgements
from bus.amqp.publisher import Publisher
from bus.delivery import Delivery
from bus.errors import AttemptInterrupted, PermanentError, TemporaryError
from bus.observability import metrics, tracing
from bus.observability.device_usage import current_usage, measure_usage
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
    format_stack,
    precheck,
)
from bus.persistence.entry_id import former_entry_ids
from bus.persistence.inbox import Inbox, InboxEntry
from bus.settings import BusSettings
from bus.worker import outgoing
from bus.worker.cancellation import CancellableRun, CancellationRegistry
from bus.worker.decoding import decode_command
from bus.worker.handler_context import build_context
from bus.worker.outgoing import StepRun
from bus.worker.raw_dead_letter import publish_raw_dead_letter, require_decodable
from contracts.broker_names import EVENTS_EXCHANGE
from contracts.fault import Fault
from contracts.wire import Result
from contracts.wire_model import WireModel

CRASH_RETRY_WAIT_SECONDS = 0.2
"""Wait per crash before a suspected message runs again, so that the least suspected ones run first."""
REQUEUE_PAUSE_SECONDS = 0.5
"""Wait before a requeue, so that a crashed engine does not cause a tight redelivery loop."""
BROKER_DELIVERY_LIMIT = 20
"""RabbitMQ 4 drops a message of a quorum queue that was returned this often."""

log = structlog.get_logger()


@dataclass(frozen=True)
class DeliveryConsumer:
    """The consumer of one actor. `crash_retry_lock` is shared by all consumers of the process."""

    actor: Actor
    handler: Handler
    inbox: Inbox
    publisher: Publisher
    cancellations: CancellationRegistry
    settings: BusSettings
    crash_retry_lock: asyncio.Lock

    @property
    def reports_events(self) -> bool:
        """Whether the actor takes events: one may say that the job's deadline has passed, or that the job is cancelled."""
        return self.actor.exchange == EVENTS_EXCHANGE

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        """Process one message, count it as in flight meanwhile, and acknowledge it: whatever it contains, and whatever fails."""
        with metrics.labelled_child(metrics.IN_FLIGHT, self.actor.step).track_inprogress():
            try:
                run, outcome = await self._process_in_span(message)
            except Exception as error:
                await self._end_raw(message, error)
                return
            await _acknowledge(message, outcome)
        _log_outcome(run, outcome)
        queued = outgoing.queued_seconds(run)
        metrics.record_delivery(run.step, outcome, attempt=run.delivery.attempt, seconds=run.seconds, queued_seconds=queued)

    async def _process_in_span(self, message: AbstractIncomingMessage) -> tuple[StepRun, Outcome]:
        received = Delivery.from_message(message, self.actor.queue)
        require_decodable(received)
        with tracing.trace_delivery(self.actor.step, received) as (delivery, span):
            run, outcome = await self.process(delivery)
            tracing.set_outcome(span, outcome)
        return run, outcome

    async def process(self, delivery: Delivery) -> tuple[StepRun, Outcome]:
        """Decide the outcome of a delivery and publish its messages."""
        run = self._start_run(delivery)
        started = time.perf_counter()
        with measure_usage(self.actor.step, delivery.device_milliseconds / 1000) as usage:
            outcome = await self.decide(run)
        run = replace(run, seconds=round(time.perf_counter() - started, 6), device_seconds=usage.rounded_seconds)
        return run, await self.publish_outcome(run, outcome)

    async def _end_raw(self, message: AbstractIncomingMessage, error: Exception) -> None:
        """Dead-letter the message raw, then acknowledge it. A query has no dead letters: it is dropped."""
        step = self.actor.step
        outcome: Outcome
        if self.actor.is_query:
            outcome = Dropped(fault_from_error(error, getattr(error, "code", "failed"), step, 1))
            log.warning("message.dropped", step=step, code=outcome.fault.code, cause=outcome.fault.message)
        else:
            outcome = await publish_raw_dead_letter(self.publisher, message, error, name=step, queue=self.actor.queue)
        await _acknowledge(message, outcome)
        metrics.record_delivery(step, outcome, attempt=1, seconds=0.0, queued_seconds=None)

    def _start_run(self, delivery: Delivery) -> StepRun:
        if not self.actor.enforce_deadline or self.reports_events:
            delivery = replace(delivery, deadline=None)
        if fields := delivery.log_fields:
            bind_contextvars(**fields)
        unsigned = delivery.signature_fault is not None  # nothing but its dead letter is published for it, in our name
        return StepRun(
            replace(delivery, reply_to=None) if unsigned else delivery,
            self.actor.step,
            self.settings.worker,
            None if unsigned else outgoing.read_slip(delivery.body),
            datetime.now(UTC),
            emit_events=self.actor.emit_events and not unsigned,
        )

    async def decide(self, run: StepRun) -> Outcome:
        """The outcome of the delivery, whatever its message contains and the handler raises."""
        try:
            command = decode_command(run.delivery, self.actor, self.settings.max_body_bytes)
            async with self._hold_crash_retry_lock(run.delivery) if run.delivery.redelivery_count else nullcontext():
                return await self._decide_deduplicated(run, command)
        except Exception as error:
            return self._after_error(error, run)

    @asynccontextmanager
    async def _hold_crash_retry_lock(self, delivery: Delivery) -> AsyncIterator[None]:
        """Messages that were in flight when a process crashed run again one at a time, those with the fewest crashes first.

        Another crash then has a single suspect, and the other messages are already done.
        """
        crashes = await self.inbox.crash_count(self.actor.step, delivery.entry_id, delivery.redelivery_count)
        if not crashes:
            yield
            return
        await asyncio.sleep(min(crashes, 10) * CRASH_RETRY_WAIT_SECONDS)
        async with self.crash_retry_lock:
            yield

    async def _decide_deduplicated(self, run: StepRun, command: WireModel) -> Outcome:
        """The stored result of a message that is done already; else the outcome of this run."""
        delivery, step = run.delivery, self.actor.step
        former_ids = former_entry_ids(delivery.message_id, delivery.former_id)
        entry = await self.inbox.acquire(step, delivery.entry_id, delivery.job_id, former_ids)
        if entry.result is not None:
            return Done(self.actor.result.model_validate(entry.result), replies=not entry.former)
        try:
            outcome = self._precheck(delivery, entry) or await self._run_handler(run, command)
        except BaseException:
            await asyncio.shield(self.inbox.release(step, delivery.entry_id))
            raise
        if not isinstance(outcome, Done):
            await self.inbox.release(step, delivery.entry_id)
        return outcome

    def _precheck(self, delivery: Delivery, entry: InboxEntry) -> Outcome | None:
        return precheck(
            step=self.actor.step,
            attempt=delivery.attempt,
            crash_count=self._crash_count(delivery, entry),
            delivery_limit=self.settings.delivery_limit,
            deadline=delivery.deadline,
            now=datetime.now(UTC),
            cancelled=entry.cancelled and self._is_cancelled_with_job(delivery),
        )

    def _is_cancelled_with_job(self, delivery: Delivery) -> bool:
        """Not a detached command, nor an event: it may be the one that reports the cancellation."""
        return not delivery.detached and not self.reports_events

    def _crash_count(self, delivery: Delivery, entry: InboxEntry) -> int:
        """How often the message crashed its process.

        The inbox knows which message was running; the broker counts every message in flight. The broker's count still applies when it
        becomes high, since the broker drops a message at BROKER_DELIVERY_LIMIT.
        """
        limit = min(BROKER_DELIVERY_LIMIT - 1, 2 * self.settings.delivery_limit)
        trusted = self.inbox.is_persistent and delivery.redelivery_count < limit
        return entry.crash_count if trusted else delivery.redelivery_count

    async def _run_handler(self, run: StepRun, command: WireModel) -> Outcome:
        """Run the handler within its time limit, and mark the message done with its result."""
        delivery = run.delivery
        tracked = self.cancellations.track(delivery.job_id) if self._is_cancelled_with_job(delivery) else nullcontext(CancellableRun())
        with tracked as cancellable:
            try:
                async with asyncio.timeout(self._seconds_left(delivery)) as limit:
                    context = build_context(run, self.publisher, lambda error: self._runs_again(error, run))
                    returned = await self.handler(command, context)
            except asyncio.CancelledError:
                if _is_delivery_cancelled(cancellable):
                    raise
                if not cancellable.cancelled:
                    raise AttemptInterrupted("the handler cancelled itself") from None
                return Dropped(self._fault(run, CANCELLED, "The job was cancelled while the step was running."))
            except TimeoutError:
                if not limit.expired():
                    raise
                return self._after_timeout(run)
        return Done(await self._mark_done(delivery, returned))

    async def _mark_done(self, delivery: Delivery, returned: Result | Transactional) -> Result:
        result, write = (returned.result, returned.write) if isinstance(returned, Transactional) else (returned, None)
        result = with_device_seconds(result, current_usage().rounded_seconds)
        try:
            await self.inbox.mark_done(self.actor.step, delivery.entry_id, result, write)
        finally:
            if isinstance(returned, Transactional) and returned.after_transaction:
                await returned.after_transaction()
        return result

    def _seconds_left(self, delivery: Delivery) -> float:
        left = (delivery.deadline - datetime.now(UTC)).total_seconds() if delivery.deadline else self.actor.timeout_seconds
        return max(0.0, min(left, self.actor.timeout_seconds))

    def _after_timeout(self, run: StepRun) -> Outcome:
        deadline = run.delivery.deadline
        if deadline and datetime.now(UTC) >= deadline:
            return Dropped(self._fault(run, EXPIRED, f"The deadline {deadline.isoformat()} passed while the step was running."))
        seconds = self.actor.timeout_seconds
        return self._after_error(TemporaryError(f"{self.actor.step} did not finish within {seconds:g} s", code="timeout"), run)

    def _after_error(self, error: Exception, run: StepRun) -> Outcome:
        step, attempt = self.actor.step, run.delivery.attempt
        unsigned_event = run.delivery.signature_fault and self.reports_events
        if self.actor.is_query or unsigned_event:
            return Dropped(fault_from_error(error, getattr(error, "code", "failed"), step, attempt))
        outcome = after_error(
            error,
            step=step,
            attempt=attempt,
            delays=self.settings.retry_delays_seconds,
            delay_queue_seconds=self.settings.delay_queue_seconds,
            stack=format_stack(error),
        )
        return drop_if_past_deadline(outcome, error, run.delivery.deadline, datetime.now(UTC))

    def _runs_again(self, error: Exception, run: StepRun) -> bool:
        outcome, deadline = self._after_error(error, run), run.delivery.deadline
        if isinstance(outcome, Retry):
            return deadline is None or datetime.now(UTC) + timedelta(seconds=outcome.delay) < deadline
        return isinstance(outcome, Requeue)

    def _fault(self, run: StepRun, code: str, message: str) -> Fault:
        return Fault(code=code, message=message, step=self.actor.step, attempts=run.delivery.attempt)

    async def publish_outcome(self, run: StepRun, outcome: Outcome) -> Outcome:
        """Publish until every message is confirmed. Returns the outcome, or a dead letter when its messages cannot be built."""
        try:
            await self._publish(run, outcome)
        except Exception as error:
            message = f"the messages of the outcome could not be built or published: {error!r}"
            outcome = self._after_error(PermanentError("internal-error", message), run)
            await self._publish(replace(run, slip=None), outcome)
        return outcome

    async def _publish(self, run: StepRun, outcome: Outcome) -> None:
        if isinstance(outcome, Requeue):
            await asyncio.sleep(REQUEUE_PAUSE_SECONDS)
        if messages := outgoing.messages_for_outcome(run, outcome, now=datetime.now(UTC)):
            with tracing.trace_publish(messages):
                await self.publisher.publish_until_confirmed(*messages)


def with_device_seconds(result: Result, seconds: float | None) -> Result:
    """The result of a step that uses a device has a field for them, which the handler need not set."""
    if seconds is None or "device_seconds" not in type(result).model_fields:
        return result
    return result.model_copy(update={"device_seconds": seconds})


def _is_delivery_cancelled(cancellable: CancellableRun) -> bool:
    """Whether this delivery's task is cancelled, as on shutdown, and not only its job."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > cancellable.cancelled


async def _acknowledge(message: AbstractIncomingMessage, outcome: Outcome) -> None:
    """Ack, or requeue. On a closed channel the broker redelivers the message, and the inbox knows its result."""
    if isinstance(outcome, Requeue):
        await acknowledgements.requeue(message)
    else:
        acknowledgements.ack(message)


def _log_outcome(run: StepRun, outcome: Outcome) -> None:
    """One log entry per delivery, with the device seconds and their tenant: that of a query is in no event."""
    delivery = run.delivery
    fields: dict[str, object] = {
        "step": run.step,
        "job_id": delivery.job_id,
        "message_id": delivery.message_id,
        "attempt": delivery.attempt,
        "seconds": run.seconds,
    }
    if run.device_seconds is not None:
        fields |= {"device_seconds": run.device_seconds, "tenant": delivery.tenant}
    match outcome:
        case Done():
            log.info("step.completed", **fields)
        case Retry(delay, fault):
            log.warning("message.retry_scheduled", delay_seconds=delay, cause=fault.message, **fields)
        case DeadLettered(fault):
            log.error("message.dead_lettered", code=fault.code, cause=fault.message, **fields)
        case Dropped(fault):
            log.warning("message.dropped", code=fault.code, **fields)
        case Requeue(reason):
            log.warning("message.requeued", reason=reason, **fields)
