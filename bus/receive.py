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

from bus import letters, metrics, tracing
from bus.actor import Actor, Context, Handler, Transactional
from bus.cancellations import Cancellations, Watched
from bus.delivery import Delivery
from bus.errors import Abandoned, EngineDead, NoQueue, PermanentError, PublishError, TemporaryError
from bus.inbox import Inbox, Known, PostgresInbox
from bus.letters import Work
from bus.outbox import Outbox
from bus.outcome import CANCELLED, EXPIRED, Dead, Done, Dropped, Outcome, Requeue, Retry, after_error, before_work, fault_of, in_time
from bus.parsing import parse
from bus.settings import BusSettings
from contracts.carried import Carried
from contracts.event import Progress
from contracts.fault import Fault

log = structlog.get_logger()


@dataclass(frozen=True)
class Counter:
    """One actor at its counter: everything a delivery of its needs."""

    actor: Actor
    handle: Handler
    inbox: Inbox
    outbox: Outbox
    cancellations: Cancellations
    settings: BusSettings
    suspects: asyncio.Lock

    async def receive(self, raw: AbstractIncomingMessage) -> None:
        """Carry one delivery from its arrival to its ack."""
        with metrics.labelled(metrics.IN_HAND, self.actor.step).track_inprogress():
            await self._receive(raw)

    async def _receive(self, raw: AbstractIncomingMessage) -> None:
        with tracing.stop_traced(self.actor.step, Delivery.of(raw, self.actor.queue)) as (delivery, span):
            tracing.settled(span, await self._carry(raw, delivery))

    async def _carry(self, raw: AbstractIncomingMessage, delivery: Delivery) -> Outcome:
        delivery = delivery if self.actor.expires else replace(delivery, deadline=None)
        if named := delivery.named:
            bind_contextvars(**named)
        work = Work(
            delivery,
            self.actor.step,
            self.settings.worker,
            letters.slip_of(delivery.body),
            datetime.now(UTC),
            announces=self.actor.announces,
        )
        started = time.perf_counter()
        outcome = await self._decide(work)
        work = replace(work, seconds=round(time.perf_counter() - started, 6))
        try:
            await self._carry_out(work, outcome)
        except Exception as error:
            outcome = self._after(PermanentError("internal-error", f"what follows from the outcome could not be said: {error!r}"), work)
            await self._carry_out(replace(work, slip=None), outcome)
        await _settle(raw, outcome)
        _say(work, outcome)
        waited = letters.queued_seconds(work)
        metrics.settled(work.step, outcome, attempt=delivery.attempt, seconds=work.seconds, waited=waited)
        return outcome

    async def _decide(self, work: Work) -> Outcome:
        try:
            command = parse(work.delivery, self.actor, self.settings.max_body_bytes)
            async with self._turn(work.delivery) if work.delivery.returns else nullcontext():
                return await self._decide_claimed(work, command)
        except Exception as error:
            return self._after(error, work)

    @asynccontextmanager
    async def _turn(self, delivery: Delivery) -> AsyncIterator[None]:
        """Work that was in hand when a process died runs with no other such work beside it, the most often struck last.

        So the next death has one suspect, and its neighbours are done before it comes.
        """
        deaths = await self.inbox.deaths(self.actor.step, delivery.message_id, delivery.returns)
        if not deaths:
            yield
            return
        await asyncio.sleep(min(deaths, 10) * SUSPECT_WAIT_SECONDS)
        async with self.suspects:
            yield

    async def _decide_claimed(self, work: Work, command: Carried) -> Outcome:
        delivery, step = work.delivery, self.actor.step
        known = await self.inbox.claim(step, delivery.message_id, delivery.job_id)
        if known.result is not None:
            return Done(self.actor.result.model_validate(known.result))
        try:
            outcome = self._already(delivery, known) or await self._handle(work, command)
        except BaseException:
            await asyncio.shield(self.inbox.release(step, delivery.message_id))
            raise
        if not isinstance(outcome, Done):
            await self.inbox.release(step, delivery.message_id)
        return outcome

    def _already(self, delivery: Delivery, known: Known) -> Outcome | None:
        """What tells of a job beside its way is not cancelled with it: the backend is to hear that it was."""
        return before_work(
            step=self.actor.step,
            attempt=delivery.attempt,
            returns=self._crashes(delivery, known),
            delivery_limit=self.settings.delivery_limit,
            deadline=delivery.deadline,
            now=datetime.now(UTC),
            cancelled=known.cancelled and not delivery.aside,
        )

    def _crashes(self, delivery: Delivery, known: Known) -> int:
        """How often the work has ended its process.

        A memory of who was at work outranks the broker's count, which strikes all who were in hand. But that count is the net
        below it, since RabbitMQ 4 drops a message that came back 20 times.
        """
        net = min(19, 2 * self.settings.delivery_limit)
        remembered = isinstance(self.inbox, PostgresInbox) and delivery.returns < net
        return known.deaths if remembered else delivery.returns

    async def _handle(self, work: Work, command: Carried) -> Outcome:
        """Run the handler within its time, and remember its result."""
        delivery = work.delivery
        with nullcontext(Watched()) if delivery.aside else self.cancellations.watch(delivery.job_id) as watched:
            try:
                async with asyncio.timeout(self._seconds_left(delivery)) as limit:
                    returned = await self.handle(command, self._context(work))
            except asyncio.CancelledError:
                if _leaving(watched):
                    raise
                if not watched.cancelled:
                    raise EngineDead("the handler was cancelled from within") from None
                return Dropped(self._fault(work, CANCELLED, "The job was cancelled while it was at work."))
            except TimeoutError:
                if not limit.expired():
                    raise
                return self._out_of_time(work)
        result, write = (returned.result, returned.write) if isinstance(returned, Transactional) else (returned, None)
        try:
            await self.inbox.remember(self.actor.step, delivery.message_id, result, write)
        finally:
            if isinstance(returned, Transactional) and returned.settled:
                await returned.settled()
        return Done(result)

    def _context(self, work: Work) -> Context:
        async def report(progress: Progress) -> None:
            try:
                await self.outbox.post(*letters.progress(work, progress))
            except PublishError as error:
                log.warning("progress.lost", job_id=work.delivery.job_id, error=str(error))

        async def say(delta: Carried) -> None:
            try:
                await self.outbox.post(letters.delta(work, delta.model_dump(mode="json")))
            except NoQueue as error:
                raise Abandoned(f"nobody awaits the reply any more: {error}") from error
            except PublishError as error:
                log.warning("delta.lost", job_id=work.delivery.job_id, error=str(error))

        delivery = work.delivery
        heard = say if delivery.reply_to else None
        return Context(delivery.job_id, delivery.message_id, delivery.attempt, delivery.tenant, delivery.deadline, report, heard)

    def _seconds_left(self, delivery: Delivery) -> float:
        left = (delivery.deadline - datetime.now(UTC)).total_seconds() if delivery.deadline else self.actor.timeout_seconds
        return max(0.0, min(left, self.actor.timeout_seconds))

    def _out_of_time(self, work: Work) -> Outcome:
        deadline = work.delivery.deadline
        if deadline and datetime.now(UTC) >= deadline:
            return Dropped(self._fault(work, EXPIRED, f"The deadline {deadline.isoformat()} passed during the work."))
        seconds = self.actor.timeout_seconds
        return self._after(TemporaryError(f"{self.actor.step} did not finish within {seconds:g} s", code="timeout"), work)

    def _fault(self, work: Work, code: str, message: str) -> Fault:
        return Fault(code=code, message=message, step=self.actor.step, attempts=work.delivery.attempt)

    def _after(self, error: Exception, work: Work) -> Outcome:
        if self.actor.question:
            return Dropped(fault_of(error, getattr(error, "code", "failed"), self.actor.step, work.delivery.attempt))
        stack = "".join(traceback.format_exception(error))
        delays, rungs = self.settings.retry_delays_seconds, self.settings.rungs
        outcome = after_error(error, step=self.actor.step, attempt=work.delivery.attempt, delays=delays, rungs=rungs, stack=stack)
        return in_time(outcome, error, work.delivery.deadline, datetime.now(UTC))

    async def _carry_out(self, work: Work, outcome: Outcome) -> None:
        if isinstance(outcome, Requeue):
            await asyncio.sleep(REQUEUE_PAUSE_SECONDS)
        if written := letters.follow(work, outcome, now=datetime.now(UTC)):
            with tracing.publishing(len(written)):
                await self.outbox.post_until_confirmed(*written)


SUSPECT_WAIT_SECONDS = 0.2
"""For each process that died of it, before work is tried again: whoever is less suspect goes first."""

REQUEUE_PAUSE_SECONDS = 0.5
"""A pause before a message goes back, so that a dead engine is not asked a thousand times a second."""


def _leaving(watched: Watched) -> bool:
    """True when this very delivery is being cancelled, as on shutdown, and not only its job."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > watched.cancelled


async def _settle(raw: AbstractIncomingMessage, outcome: Outcome) -> None:
    """Ack, or give back. When the channel is gone the broker has the message already, and the inbox knows what was done."""
    try:
        if isinstance(outcome, Requeue):
            await raw.reject(requeue=True)
        else:
            await raw.channel.basic_ack(raw.delivery_tag or 0, wait=False)
    except Exception as error:
        log.info("delivery.unsettled", message_id=raw.message_id, error=repr(error))


def _say(work: Work, outcome: Outcome) -> None:
    """One line a stop."""
    delivery = work.delivery
    fields = {
        "step": work.step,
        "job_id": delivery.job_id,
        "message_id": delivery.message_id,
        "attempt": delivery.attempt,
        "seconds": work.seconds,
    }
    match outcome:
        case Done():
            log.info("stop.done", **fields)
        case Retry(delay, fault):
            log.warning("stop.retry", delay_seconds=delay, cause=fault.message, **fields)
        case Dead(fault):
            log.error("stop.dead", code=fault.code, cause=fault.message, **fields)
        case Dropped(fault):
            log.warning("stop.dropped", code=fault.code, **fields)
        case Requeue(reason):
            log.warning("stop.requeued", reason=reason, **fields)
