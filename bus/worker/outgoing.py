"""The messages that an outcome publishes: event, reply, next command, retry, dead letter. Pure: `Publisher` publishes them."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bus.amqp.messages import JOB_STEP, OutboundMessage, build_command, build_event, encode_json
from bus.delivery import Delivery, carry_original_properties
from bus.ids import derived_id
from bus.outcome import CANCELLED, EXPIRED, DeadLettered, Done, Dropped, Outcome, Requeue, Retry
from bus.routing_slip import advance, build_command_body, is_finished, is_refused, job_result, next_command
from contracts import broker_names
from contracts.event import Event, EventKind, Progress
from contracts.fault import Fault
from contracts.slip import CompletedStep, Slip, SlipStep
from contracts.wire import Header

STACK_LIMIT = 4000
SLIP_BODY_LIMIT = 4 << 20
"""Bytes. A larger command is dead-lettered unread: parsing holds up the whole process, for 0.1 s a megabyte at worst."""
JOB_FAULT_CODES = frozenset({CANCELLED, EXPIRED})
"""Faults of the job, not of the step that met them: that step may still be the one that reports the failure."""


@dataclass(frozen=True)
class StepRun:
    """One run of a step, as its messages describe it."""

    delivery: Delivery
    step: str
    worker: str
    slip: Slip | None
    started_at: datetime
    seconds: float = 0.0
    device_seconds: float | None = None
    emit_events: bool = True


def messages_for_outcome(run: StepRun, outcome: Outcome, *, now: datetime) -> list[OutboundMessage]:
    match outcome:
        case Done(result, replies):
            run = run if replies else replace(run, delivery=replace(run.delivery, reply_to=None))
            if not (run.emit_events or run.delivery.reply_to or run.slip):
                return []  # nothing can carry the result
            return build_completed(run, result.model_dump(mode="json", exclude_none=True))
        case Retry():
            return [build_retry(run, outcome, now=now)]
        case DeadLettered():
            return build_dead_letter(run, outcome, now=now)
        case Dropped(fault):
            return build_failed(run, fault)
        case Requeue():
            return []


def build_completed(run: StepRun, result: dict[str, Any]) -> list[OutboundMessage]:
    """The step's event; then the next command, or the end of the job."""
    if "device_seconds" in result:  # also of a result that is found in the inbox
        run = replace(run, device_seconds=result["device_seconds"])
    messages = build_events(run, EventKind.COMPLETED, result=result)
    last = is_finished(run.slip, result)
    if run.delivery.reply_to and (last or (run.slip and run.slip.reply_here)):
        messages.append(build_reply(run, job_result(run.slip, result)))
    if last and not run.delivery.detached:
        messages += build_events(run, EventKind.COMPLETED, step=JOB_STEP, result=job_result(run.slip, result))
    if last and run.slip and run.slip.on_refusal and is_refused(run.slip, result):
        messages.append(_build_refusal(run, run.slip, run.slip.on_refusal))
    elif not last and run.slip:
        completed = CompletedStep(
            step=run.step, worker=run.worker, started_at=run.started_at, seconds=run.seconds, device_seconds=run.device_seconds
        )
        messages.append(build_next_command(run, advance(run.slip, result, completed)))
    return messages


def _build_refusal(run: StepRun, slip: Slip, slip_step: SlipStep) -> OutboundMessage:
    """The slip's `on_refusal` command. A fault in its arguments is that of the step it names; else the fault names the condition."""
    named = slip_step.arguments.get("fault")
    if not isinstance(named, dict) or named.get("step") == run.step:
        return _build_detached_command(run, slip, slip_step, "refused")
    message = f"The condition {slip.gate!r} of the step {run.step} is not met."
    fault = Fault(code=str(named.get("code", "refused")), message=message, step=run.step)
    return _build_detached_command(run, slip, slip_step, "refused", fault=fault.model_dump(mode="json", exclude_none=True))


def build_next_command(run: StepRun, slip: Slip) -> OutboundMessage:
    step, body = next_command(slip)
    replied = run.slip is not None and run.slip.reply_here
    message_id, former_id = run.delivery.derive_id("next", step)
    return build_command(
        step,
        body,
        message_id=message_id,
        job_id=run.delivery.job_id,
        headers=_causation_headers(run) | former_id,
        reply_to=None if replied else run.delivery.reply_to,
    )


def build_progress(run: StepRun, progress: Progress) -> list[OutboundMessage]:
    """The progress event, and the slip's `on_progress` command. They may be lost; nothing depends on them."""
    messages = build_events(run, EventKind.PROGRESS, progress=progress)
    if run.slip and run.slip.on_progress:
        fields = progress.model_dump(mode="json", exclude_none=True)
        occasion = f"progress/{progress.progress_percent}"
        messages.append(_build_detached_command(run, run.slip, run.slip.on_progress, occasion, progress=fields))
    return messages


def build_retry(run: StepRun, outcome: Retry, *, now: datetime) -> OutboundMessage:
    """A copy with attempt + 1 to a delay queue, from which it returns to the failing queue alone."""
    headers = _failure_headers(run, outcome.fault, now) | {Header.ATTEMPT.value: run.delivery.attempt + 1}
    if run.device_seconds is not None:
        headers[Header.DEVICE_MILLISECONDS.value] = round(run.device_seconds * 1000)
    return _copy_message(run.delivery, broker_names.retry_exchange(outcome.delay), run.delivery.queue, headers)


def build_dead_letter(run: StepRun, outcome: DeadLettered, *, now: datetime) -> list[OutboundMessage]:
    """The original message to the dead-letter queue, its cause in the headers; then the messages about the failure."""
    headers = _failure_headers(run, outcome.fault, now) | {
        Header.ATTEMPT.value: run.delivery.attempt,
        Header.FAULT_CODE.value: outcome.fault.code,
        Header.EXCEPTION_STACK.value: outcome.stack[-STACK_LIMIT:],
    }
    dead_letter = _copy_message(run.delivery, "", broker_names.dead_letter_queue(run.step), headers)
    return [dead_letter, *build_failed(run, outcome.fault)]


def _copy_message(delivery: Delivery, exchange: str, routing_key: str, headers: dict[str, Any]) -> OutboundMessage:
    """With our properties; its own are carried in a header, since some of them must not have an effect here, such as an expiration."""
    return OutboundMessage(
        exchange,
        routing_key,
        delivery.body,
        delivery.message_id,
        delivery.job_id,
        delivery.type or "",
        headers | carry_original_properties(delivery.original_properties),
        delivery.reply_to,
        mandatory=True,
    )


def build_failed(run: StepRun, fault: Fault) -> list[OutboundMessage]:
    """The messages about a job that fails: events, the fault as its reply, and the slip's `on_failure` command."""
    kind = EventKind.CANCELLED if fault.code == CANCELLED else EventKind.FAILED
    messages = build_events(run, kind, fault=fault)
    if not run.delivery.detached:
        messages += build_events(run, kind, step=JOB_STEP, fault=fault)
    if run.delivery.reply_to:
        messages.append(build_reply(run, fault.model_dump(mode="json"), message_type="fault.v1"))
    if run.slip and run.slip.on_failure and (run.slip.on_failure.step != run.step or fault.code in JOB_FAULT_CODES):
        messages.append(_build_detached_command(run, run.slip, run.slip.on_failure, "failed", fault=fault.model_dump(mode="json")))
    return messages


def build_events(run: StepRun, kind: EventKind, *, step: str | None = None, **fields: Any) -> list[OutboundMessage]:
    """One event, or none when the actor emits no events. `fields`: further fields of `Event`."""
    if not run.emit_events:
        return []
    delivery = run.delivery
    event = Event(
        kind=kind,
        step=step or run.step,
        job_id=delivery.job_id,
        at=datetime.now(UTC),
        message_id=delivery.message_id,
        tenant=delivery.tenant,
        attempt=delivery.attempt,
        worker=run.worker,
        seconds=run.seconds,
        queued_seconds=queued_seconds(run),
        device_seconds=None if step else run.device_seconds,
        **fields,
    )
    return [build_event(event, _causation_headers(run))]


def build_reply(run: StepRun, body: dict[str, Any], *, message_type: str | None = None) -> OutboundMessage:
    """To the reply queue through the default exchange. A reply that no queue takes is no error: the caller may be gone."""
    delivery = run.delivery
    return OutboundMessage(
        "",
        delivery.reply_to or "",
        encode_json(body),
        derived_id(delivery.message_id, "reply"),
        delivery.job_id,
        message_type or f"{run.step}.done.v1",
        _causation_headers(run),
    )


def build_delta(run: StepRun, body: dict[str, Any]) -> OutboundMessage:
    """A part of a streamed reply. Mandatory: without a reply queue the rest of the reply is of no use."""
    delivery = run.delivery
    message_id = derived_id(delivery.message_id, "delta", delivery.attempt, str(body.get("sequence")))
    message_type = f"{run.step}.delta.v1"
    return OutboundMessage(
        "", delivery.reply_to or "", encode_json(body), message_id, delivery.job_id, message_type, _causation_headers(run), mandatory=True
    )


def read_slip(body: bytes) -> Slip | None:
    """The slip of a command, even of one that is otherwise invalid, so that `on_failure` can report it. None over SLIP_BODY_LIMIT."""
    if len(body) > SLIP_BODY_LIMIT or b'"slip"' not in body:  # a search takes a thousandth of the time of parsing
        return None
    try:
        return Slip.model_validate(json.loads(body)["slip"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _build_detached_command(run: StepRun, slip: Slip, slip_step: SlipStep, occasion: str, **extra: Any) -> OutboundMessage:
    """A command outside the itinerary, after which no step follows. It has no deadline, since it may report that one has passed.

    `occasion`: what distinguishes it from other detached commands of the same run; a part of its message id.
    """
    message_id, former_id = run.delivery.derive_id("aside", slip_step.step, occasion)
    body = build_command_body(slip_step, slip, **extra)
    headers = {name: value for name, value in _causation_headers(run).items() if name != Header.DEADLINE} | {Header.DETACHED.value: True}
    headers |= former_id
    return build_command(slip_step.step, body, message_id=message_id, job_id=run.delivery.job_id, headers=headers)


def _failure_headers(run: StepRun, fault: Fault, now: datetime) -> dict[str, Any]:
    """Headers of a failed message; origin and first failure are kept from its first failure on."""
    delivery = run.delivery
    detached = {Header.DETACHED.value: True} if delivery.detached else {}
    former_id = {Header.FORMER_ID.value: delivery.former_id} if delivery.former_id else {}
    return (
        delivery.propagated_headers
        | detached
        | former_id
        | {
            Header.ORIGIN_QUEUE.value: delivery.origin.queue,
            Header.ORIGIN_EXCHANGE.value: delivery.origin.exchange,
            Header.ORIGIN_ROUTING_KEY.value: delivery.origin.routing_key,
            Header.FIRST_FAILED_AT.value: delivery.first_failed_at or now.isoformat(),
            Header.LAST_FAILED_AT.value: now.isoformat(),
            Header.FAULT_MESSAGE.value: fault.message,
            Header.EXCEPTION_TYPE.value: fault.exception_type or "",
        }
    )


def _causation_headers(run: StepRun) -> dict[str, Any]:
    return run.delivery.propagated_headers | {Header.CAUSATION.value: run.delivery.message_id}


def queued_seconds(run: StepRun) -> float | None:
    """From publish to arrival; None when the publisher set no timestamp, and for a replay, which keeps that of the first time."""
    published = None if run.delivery.replay else run.delivery.published_at
    return max(0.0, (run.started_at - published).total_seconds()) if published else None
