"""Consumes a foreign queue: translates each message into a command, publishes it with a confirm, then acknowledges the message."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog
from aio_pika.abc import AbstractIncomingMessage

from bus.actor import Adapter, IgnoredMessage, InvalidMessage, TranslatedCommand
from bus.amqp import acknowledgements
from bus.amqp.messages import JOB_STEP, OutboundMessage, build_command
from bus.amqp.publisher import Publisher
from bus.delivery import Delivery
from bus.errors import PermanentError
from bus.ids import derived_id
from bus.observability import metrics, tracing
from bus.outcome import DeadLettered, fault_from_error, format_stack
from bus.worker import outgoing
from bus.worker.decoding import check_size
from bus.worker.outgoing import StepRun
from bus.worker.raw_dead_letter import publish_raw_dead_letter, require_decodable
from contracts.event import EventKind
from contracts.slip import Slip
from contracts.wire import Header

log = structlog.get_logger()


@dataclass(frozen=True)
class AdapterConsumer:
    """The consumer of one adapter."""

    adapter: Adapter
    publisher: Publisher
    worker: str
    max_body_bytes: int

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        """Translate or dead-letter one message, and acknowledge it: whatever it contains, and whatever fails."""
        started, adapter = time.perf_counter(), self.adapter
        try:
            code = await self._process_in_span(message)
        except Exception as error:
            outcome = await publish_raw_dead_letter(self.publisher, message, error, name=adapter.name, queue=adapter.queue)
            code = outcome.fault.code
        acknowledgements.ack(message)
        metrics.record_translation(adapter.name, code, time.perf_counter() - started)

    async def _process_in_span(self, message: AbstractIncomingMessage) -> str:
        """Returns the fault code of a dead-lettered message, else "", as for an ignored one."""
        received = Delivery.from_message(message, self.adapter.queue)
        require_decodable(received)
        with tracing.trace_delivery(self.adapter.name, received) as (delivery, span):
            code = ""
            try:
                check_size(message.body, self.max_body_bytes)
                await self._publish_command(delivery, self.adapter.translate(message.body))
            except IgnoredMessage as ignored:
                log.warning("message.ignored", adapter=self.adapter.name, reason=str(ignored))
            except Exception as error:
                code = await self._dead_letter(delivery, error)
            tracing.set_dead_lettered(span, code)
        return code

    async def _publish_command(self, delivery: Delivery, translated: TranslatedCommand) -> None:
        slip = Slip.model_validate(translated.body.get("slip") or {})
        itinerary = [translated.step, *(slip_step.step for slip_step in slip.itinerary)]
        result = {"kind": self.adapter.name, "itinerary": itinerary}
        accepted = outgoing.build_events(self._step_run(delivery, translated, slip), EventKind.ACCEPTED, step=JOB_STEP, result=result)
        await self.publisher.publish_until_confirmed(
            *accepted, _command_message(translated, delivery), *self._replay_events(delivery, translated)
        )
        log.info("job.accepted", adapter=self.adapter.name, job_id=translated.job_id, message_id=translated.message_id)

    def _replay_events(self, delivery: Delivery, translated: TranslatedCommand) -> list[OutboundMessage]:
        """The event that marks the dead letter of a replayed message as resolved."""
        if not delivery.replay:
            return []
        run = StepRun(replace(delivery, job_id=translated.job_id), self.adapter.name, self.worker, None, datetime.now(UTC))
        return outgoing.build_events(run, EventKind.COMPLETED)

    async def _dead_letter(self, delivery: Delivery, error: Exception) -> str:
        """Publish the dead letter, under the message's own id, and the notification of an InvalidMessage. Returns the fault code."""
        code = error.code if isinstance(error, PermanentError) else "adapter-failed"
        fault = fault_from_error(error, code, self.adapter.name, 1)
        notification = error.notification if isinstance(error, InvalidMessage) else None
        run = self._step_run(delivery, notification, None)
        outcome = DeadLettered(fault, format_stack(error))
        dead_letter, *others = outgoing.build_dead_letter(run, outcome, now=datetime.now(UTC))
        messages = [replace(dead_letter, message_id=delivery.message_id), *others]
        if notification:
            body = notification.body | {"fault": fault.model_dump(mode="json")}
            headers = notification.headers | {Header.DETACHED.value: True}
            messages.append(_command_message(replace(notification, body=body, headers=headers), delivery))
        await self.publisher.publish_until_confirmed(*messages)
        log.error("message.dead_lettered", adapter=self.adapter.name, code=code, cause=fault.message, job_id=run.delivery.job_id)
        return code

    def _step_run(self, delivery: Delivery, translated: TranslatedCommand | None, slip: Slip | None) -> StepRun:
        """The run that events describe: under the id of the translated job, without the foreign message's other properties."""
        described = Delivery(
            body=delivery.body,
            queue=delivery.queue,
            message_id=derived_id(translated.message_id, "adapter") if translated else delivery.message_id,
            job_id=translated.job_id if translated else delivery.job_id,
            traceparent=delivery.traceparent,
            tracestate=delivery.tracestate,
            published_at=delivery.published_at,
            original_properties=delivery.original_properties,
            origin=delivery.origin,
        )
        return StepRun(described, self.adapter.name, self.worker, slip, datetime.now(UTC))


def _command_message(translated: TranslatedCommand, cause: Delivery) -> OutboundMessage:
    """The command continues the trace of the foreign message."""
    headers = cause.trace_context | translated.headers
    return build_command(translated.step, translated.body, message_id=translated.message_id, job_id=translated.job_id, headers=headers)
