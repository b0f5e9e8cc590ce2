"""What is published for an outcome: event, reply, next stop, retry, burial. Pure: letters are written here, posted by the outbox."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bus.amqp.messages import JOB_STEP, OutboundMessage, build_command, encode_json
from bus.delivery import Delivery
from bus.ids import derived_id
from bus.outcome import CANCELLED, EXPIRED, DeadLettered, Done, Dropped, Outcome, Requeue, Retry
from bus.routing_slip import advance, build_command_body, is_finished, is_refused, job_result, next_command
from contracts import broker_names
from contracts.event import Event, EventKind, Progress
from contracts.fault import Fault
from contracts.slip import CompletedStep, Slip, SlipStep
from contracts.wire import Header

STACK_LIMIT = 4000


JOB_FAULT_CODES = frozenset({CANCELLED, EXPIRED})
"""Faults of the job, not of the step that met them: that step may still be the one to tell."""


@dataclass(frozen=True)
class StepRun:
    """One run of a step: what the letters about it say."""

    delivery: Delivery
    step: str
    worker: str
    slip: Slip | None
    started_at: datetime
    seconds: float = 0.0
    emit_events: bool = True


def messages_for_outcome(run: StepRun, outcome: Outcome, *, now: datetime) -> list[OutboundMessage]:
    """Every letter that an outcome asks for."""
    match outcome:
        case Done(result):
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
    """The step's event; then the next stop, or the job's end."""
    letters = build_events(run, EventKind.COMPLETED, result=result)
    last = is_finished(run.slip, result)
    if run.delivery.reply_to and (last or (run.slip and run.slip.reply_here)):
        letters.append(build_reply(run, job_result(run.slip, result)))
    if last and not run.delivery.detached:
        letters += build_events(run, EventKind.COMPLETED, step=JOB_STEP, result=job_result(run.slip, result))
    if last and run.slip and run.slip.on_refusal and is_refused(run.slip, result):
        letters.append(_build_detached_command(run, run.slip.on_refusal, "refused"))
    elif not last and run.slip:
        visit = CompletedStep(step=run.step, worker=run.worker, started_at=run.started_at, seconds=run.seconds)
        letters.append(build_next_command(run, advance(run.slip, result, visit)))
    return letters


def build_next_command(run: StepRun, slip: Slip) -> OutboundMessage:
    step, body = next_command(slip)
    answered = run.slip is not None and run.slip.reply_here
    message_id = derived_id(run.delivery.message_id, "next", step)
    return build_command(
        step,
        body,
        message_id=message_id,
        job_id=run.delivery.job_id,
        headers=_causation_headers(run),
        reply_to=None if answered else run.delivery.reply_to,
    )


def build_progress(run: StepRun, progress: Progress) -> list[OutboundMessage]:
    """May be lost; never decides anything."""
    letters = build_events(run, EventKind.PROGRESS, progress=progress)
    if run.slip and run.slip.on_progress:
        told = progress.model_dump(mode="json", exclude_none=True)
        letters.append(_build_detached_command(run, run.slip.on_progress, f"progress/{progress.progress_percent}", progress=told))
    return letters


def build_retry(run: StepRun, outcome: Retry, *, now: datetime) -> OutboundMessage:
    """A copy with attempt + 1 to a rung of the ladder, from where it goes back to the failing queue alone."""
    delivery = run.delivery
    headers = _failure_headers(run, outcome.fault, now) | {Header.ATTEMPT.value: delivery.attempt + 1}
    exchange = broker_names.retry_exchange(outcome.delay)
    return OutboundMessage(
        exchange,
        delivery.queue,
        delivery.body,
        delivery.message_id,
        delivery.job_id,
        delivery.type or "",
        headers,
        delivery.reply_to,
        mandatory=True,
    )


def build_dead_letter(run: StepRun, outcome: DeadLettered, *, now: datetime) -> list[OutboundMessage]:
    """The message as it came, to the dead letters, its cause in the headers; and the word to all who wait."""
    delivery = run.delivery
    headers = _failure_headers(run, outcome.fault, now) | {
        Header.ATTEMPT.value: delivery.attempt,
        Header.FAULT_CODE.value: outcome.fault.code,
        Header.EXCEPTION_STACK.value: outcome.stack[-STACK_LIMIT:],
    }
    dead = broker_names.dead_letter_queue(run.step)
    letter = OutboundMessage(
        "", dead, delivery.body, delivery.message_id, delivery.job_id, delivery.type or "", headers, delivery.reply_to, mandatory=True
    )
    return [letter, *build_failed(run, outcome.fault)]


def build_failed(run: StepRun, fault: Fault) -> list[OutboundMessage]:
    """A job that will not be finished: the events, the fault to whoever awaits a reply, and the slip's own last word."""
    kind = EventKind.CANCELLED if fault.code == CANCELLED else EventKind.FAILED
    letters = build_events(run, kind, fault=fault)
    if not run.delivery.detached:
        letters += build_events(run, kind, step=JOB_STEP, fault=fault)
    if run.delivery.reply_to:
        letters.append(build_reply(run, fault.model_dump(mode="json"), message_type="fault.v1"))
    if run.slip and run.slip.on_failure and (run.slip.on_failure.step != run.step or fault.code in JOB_FAULT_CODES):
        letters.append(_build_detached_command(run, run.slip.on_failure, "failed", fault=fault.model_dump(mode="json")))
    return letters


def build_events(run: StepRun, kind: EventKind, *, step: str | None = None, **fields: Any) -> list[OutboundMessage]:
    """One event, or none when the actor announces nothing."""
    return [_build_event(run, kind, step or run.step, **fields)] if run.emit_events else []


def _build_event(run: StepRun, kind: EventKind, step: str, **fields: Any) -> OutboundMessage:
    delivery = run.delivery
    told = Event(
        kind=kind,
        step=step,
        job_id=delivery.job_id,
        at=datetime.now(UTC),
        message_id=delivery.message_id,
        tenant=delivery.tenant,
        attempt=delivery.attempt,
        worker=run.worker,
        seconds=run.seconds,
        queued_seconds=queued_seconds(run),
        **fields,
    )
    percent = [told.progress.progress_percent] if told.progress else []
    message_id = derived_id(delivery.message_id, step, kind, *percent)
    key = broker_names.event_routing_key(step, kind, delivery.job_id)
    body = told.model_dump_json(exclude_none=True).encode()
    return OutboundMessage(broker_names.EVENTS_EXCHANGE, key, body, message_id, delivery.job_id, "event.v1", _causation_headers(run))


def build_reply(run: StepRun, body: dict[str, Any], *, message_type: str | None = None) -> OutboundMessage:
    """To the default exchange, by the queue's name. Whoever asked may be gone: that is counted, not raised."""
    delivery = run.delivery
    message_id = derived_id(delivery.message_id, "reply")
    return OutboundMessage(
        "",
        delivery.reply_to or "",
        encode_json(body),
        message_id,
        delivery.job_id,
        message_type or f"{run.step}.done.v1",
        _causation_headers(run),
    )


def build_delta(run: StepRun, body: dict[str, Any]) -> OutboundMessage:
    """A part of a reply that is still being made. Where nobody awaits it any more there is no use in making the rest."""
    delivery = run.delivery
    message_id = derived_id(delivery.message_id, "delta", delivery.attempt, str(body.get("sequence")))
    kind = f"{run.step}.delta.v1"
    return OutboundMessage(
        "", delivery.reply_to or "", encode_json(body), message_id, delivery.job_id, kind, _causation_headers(run), mandatory=True
    )


def read_slip(body: bytes) -> Slip | None:
    """The slip of a command that is otherwise unreadable, so that its backend still hears of the failure."""
    if b'"slip"' not in body:  # a search is a thousandth of the parsing
        return None
    try:
        return Slip.model_validate(json.loads(body)["slip"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _build_detached_command(run: StepRun, slip_step: SlipStep, mark: str, **extra: Any) -> OutboundMessage:
    """A command beside the itinerary, of which nothing follows. The job's deadline is not its own: that it passed is to be told."""
    assert run.slip is not None
    message_id = derived_id(run.delivery.message_id, "aside", slip_step.step, mark)
    body = build_command_body(slip_step, run.slip, **extra)
    headers = {name: value for name, value in _causation_headers(run).items() if name != Header.DEADLINE} | {Header.DETACHED.value: True}
    return build_command(slip_step.step, body, message_id=message_id, job_id=run.delivery.job_id, headers=headers)


def _failure_headers(run: StepRun, fault: Fault, now: datetime) -> dict[str, Any]:
    """Headers that a message keeps from its first failure on."""
    delivery = run.delivery
    aside = {Header.DETACHED.value: True} if delivery.detached else {}
    return (
        delivery.propagated_headers
        | aside
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
    """From publish to arrival."""
    published = run.delivery.published_at
    return max(0.0, (run.started_at - published).total_seconds()) if published else None
