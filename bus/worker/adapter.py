"""An adapter reads a foreign queue, turns each message into a command of ours, publishes it with a confirm, then acks."""

import time
import traceback
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.actor import Adapter, InvalidMessage, TranslatedCommand
from bus.amqp import messages
from bus.amqp.publisher import Publisher
from bus.delivery import Delivery
from bus.errors import PermanentError
from bus.ids import derived_id
from bus.observability import metrics, tracing
from bus.outcome import DeadLettered, fault_from_error
from bus.worker import outgoing
from bus.worker.outgoing import StepRun
from contracts.event import EventKind
from contracts.slip import Slip
from contracts.wire import Header

log = structlog.get_logger()


@dataclass(frozen=True)
class AdapterConsumer:
    """One adapter at its counter."""

    adapter: Adapter
    publisher: Publisher
    worker: str

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        started = time.perf_counter()
        with tracing.trace_delivery(self.adapter.name, Delivery.from_message(message, self.adapter.queue)) as (delivery, span):
            code = await self._process(message, delivery)
            tracing.set_dead_lettered(span, code)
        metrics.record_translation(self.adapter.name, code, time.perf_counter() - started)

    async def _process(self, message: AbstractIncomingMessage, delivery: Delivery) -> str:
        """Returns the code of a burial, else nothing."""
        code = ""
        try:
            await self._publish_command(delivery, self.adapter.translate(message.body))
        except Exception as error:
            code = await self._dead_letter(delivery, error)
        try:
            await message.ack()
        except Exception as error:
            log.info("delivery.unsettled", message_id=delivery.message_id, error=repr(error))
        return code

    async def _publish_command(self, delivery: Delivery, translated: TranslatedCommand) -> None:
        slip = Slip.model_validate(translated.body.get("slip") or {})
        itinerary = [translated.step, *(stop.step for stop in slip.itinerary)]
        told = {"kind": self.adapter.name, "itinerary": itinerary}
        accepted = outgoing.build_events(
            self._step_run(delivery, translated, slip), EventKind.ACCEPTED, step=messages.JOB_STEP, result=told
        )
        await self.publisher.publish_until_confirmed(
            *accepted, _command_message(translated, delivery), *self._replay_events(delivery, translated)
        )
        log.info("order.accepted", adapter=self.adapter.name, job_id=translated.job_id, message_id=translated.message_id)

    def _replay_events(self, delivery: Delivery, translated: TranslatedCommand) -> list[messages.OutboundMessage]:
        """The word that lets the dead letters resolve a message which an operator has sent again."""
        if not delivery.replay:
            return []
        work = StepRun(replace(delivery, job_id=translated.job_id), self.adapter.name, self.worker, None, datetime.now(UTC))
        return outgoing.build_events(work, EventKind.COMPLETED)

    async def _dead_letter(self, delivery: Delivery, error: Exception) -> str:
        """Returns the code under which it lies."""
        code = error.code if isinstance(error, PermanentError) else "adapter-failed"
        fault = fault_from_error(error, code, self.adapter.name, 1)
        told = error.notification if isinstance(error, InvalidMessage) else None
        work = self._step_run(delivery, told, None)
        outcome = DeadLettered(fault, "".join(traceback.format_exception(error)))
        burial = outgoing.build_dead_letter(work, outcome, now=datetime.now(UTC))
        if told:
            body = told.body | {"fault": fault.model_dump(mode="json")}
            headers = told.headers | {Header.DETACHED.value: True}
            burial.append(_command_message(TranslatedCommand(told.step, body, told.message_id, told.job_id, headers), delivery))
        await self.publisher.publish_until_confirmed(*burial)
        log.error("order.dead", adapter=self.adapter.name, code=code, cause=fault.message, job_id=work.delivery.job_id)
        return code

    def _step_run(self, delivery: Delivery, translated: TranslatedCommand | None, slip: Slip | None) -> StepRun:
        """Events about the order bear its job id, not the foreign message's own properties."""
        job_id = translated.job_id if translated else delivery.job_id
        message_id = derived_id(translated.message_id, "adapter") if translated else delivery.message_id
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
        return StepRun(told, self.adapter.name, self.worker, slip, datetime.now(UTC))


def _command_message(translated: TranslatedCommand, cause: Delivery) -> messages.OutboundMessage:
    """The order goes on in the trace of the foreign message."""
    headers = cause.trace_context | translated.headers
    return messages.build_command(
        translated.step, translated.body, message_id=translated.message_id, job_id=translated.job_id, headers=headers
    )
