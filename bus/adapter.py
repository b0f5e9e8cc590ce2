"""An adapter reads a foreign queue, turns each message into a command of ours, publishes it with a confirm, then acks."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus import letters, metrics, tracing
from bus.delivery import Delivery
from bus.errors import PermanentError
from bus.ids import derived_id
from bus.letters import Work
from bus.outbox import Outbox
from bus.outcome import Dead, fault_of
from contracts.event import EventKind
from contracts.slip import Slip
from contracts.wire import Header

log = structlog.get_logger()


@dataclass(frozen=True)
class Translated:
    """A command of ours. `message_id` must follow from the foreign message, so that the same order twice is done once."""

    step: str
    body: dict[str, Any]
    message_id: str
    job_id: str
    headers: dict[str, Any] = field(default_factory=dict)


class Unreadable(PermanentError):
    """The foreign message is no order. `told`: how to tell its sender, when that much could be read."""

    def __init__(self, code: str, message: str, *, told: Translated | None = None) -> None:
        super().__init__(code, message)
        self.told = told


@dataclass(frozen=True)
class Adapter:
    """`translate` is pure: bytes in, command out, or Unreadable."""

    name: str
    queue: str
    translate: Callable[[bytes], Translated]
    prefetch: int = 16

    @property
    def step(self) -> str:
        return self.name


@dataclass(frozen=True)
class AdapterCounter:
    """One adapter at its counter."""

    adapter: Adapter
    outbox: Outbox
    worker: str

    async def receive(self, raw: AbstractIncomingMessage) -> None:
        started = time.perf_counter()
        with tracing.stop_traced(self.adapter.name, Delivery.of(raw, self.adapter.queue)) as (delivery, span):
            code = await self._translate(raw, delivery)
            tracing.buried(span, code)
        metrics.passed_on(self.adapter.name, code, time.perf_counter() - started)

    async def _translate(self, raw: AbstractIncomingMessage, delivery: Delivery) -> str:
        """Returns the code of a burial, else nothing."""
        code = ""
        try:
            await self._pass_on(delivery, self.adapter.translate(raw.body))
        except Exception as error:
            code = await self._bury(delivery, error)
        try:
            await raw.ack()
        except Exception as error:
            log.info("delivery.unsettled", message_id=delivery.message_id, error=repr(error))
        return code

    async def _pass_on(self, delivery: Delivery, order: Translated) -> None:
        slip = Slip.model_validate(order.body.get("slip") or {})
        itinerary = [order.step, *(stop.step for stop in slip.itinerary)]
        told = {"kind": self.adapter.name, "itinerary": itinerary}
        accepted = letters.events(self._work(delivery, order, slip), EventKind.ACCEPTED, step=letters.JOB, result=told)
        await self.outbox.post_until_confirmed(*accepted, _letter(order, delivery), *self._replayed(delivery, order))
        log.info("order.accepted", adapter=self.adapter.name, job_id=order.job_id, message_id=order.message_id)

    def _replayed(self, delivery: Delivery, order: Translated) -> list[letters.Letter]:
        """The word that lets the dead letters resolve a message which an operator has sent again."""
        if not delivery.replay:
            return []
        work = Work(replace(delivery, job_id=order.job_id), self.adapter.name, self.worker, None, datetime.now(UTC))
        return letters.events(work, EventKind.COMPLETED)

    async def _bury(self, delivery: Delivery, error: Exception) -> str:
        """Returns the code under which it lies."""
        code = error.code if isinstance(error, PermanentError) else "adapter-failed"
        fault = fault_of(error, code, self.adapter.name, 1)
        told = error.told if isinstance(error, Unreadable) else None
        work = self._work(delivery, told, None)
        outcome = Dead(fault, "".join(traceback.format_exception(error)))
        burial = letters.burial(work, outcome, now=datetime.now(UTC))
        if told:
            body = told.body | {"fault": fault.model_dump(mode="json")}
            headers = told.headers | {Header.ASIDE.value: True}
            burial.append(_letter(Translated(told.step, body, told.message_id, told.job_id, headers), delivery))
        await self.outbox.post_until_confirmed(*burial)
        log.error("order.dead", adapter=self.adapter.name, code=code, cause=fault.message, job_id=work.delivery.job_id)
        return code

    def _work(self, delivery: Delivery, order: Translated | None, slip: Slip | None) -> Work:
        """Events about the order bear its job id, not the foreign message's own properties."""
        job_id = order.job_id if order else delivery.job_id
        message_id = derived_id(order.message_id, "adapter") if order else delivery.message_id
        told = Delivery(
            body=delivery.body,
            queue=delivery.queue,
            message_id=message_id,
            job_id=job_id,
            traceparent=delivery.traceparent,
            tracestate=delivery.tracestate,
            published_at=delivery.published_at,
            origin=delivery.origin,
        )
        return Work(told, self.adapter.name, self.worker, slip, datetime.now(UTC))


def _letter(order: Translated, cause: Delivery) -> letters.Letter:
    """The order goes on in the trace of the foreign message."""
    headers = cause.trace | order.headers
    return letters.command_letter(order.step, order.body, message_id=order.message_id, job_id=order.job_id, headers=headers)
