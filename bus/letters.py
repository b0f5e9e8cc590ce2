"""What is published for an outcome: event, reply, next stop, retry, burial. Pure: letters are written here, posted by the outbox."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from bus.delivery import Delivery
from bus.ids import derived_id
from bus.outcome import CANCELLED, EXPIRED, Dead, Done, Dropped, Outcome, Requeue, Retry
from bus.routing_slip import after_stop, answer, command, depart, ends_here, refused
from contracts import channels
from contracts.event import Event, EventKind, Progress
from contracts.fault import Fault
from contracts.slip import Slip, Stop, Visit
from contracts.wire import Header, message_type

STACK_LIMIT = 4000
JOB = "job"
NOT_THE_STEPS = frozenset({CANCELLED, EXPIRED})
"""Faults of the job, not of the step that met them: that step may still be the one to tell."""


@dataclass(frozen=True)
class Letter:
    """A message to publish. `must_route`: no queue for it is an error."""

    exchange: str
    key: str
    body: bytes
    message_id: str
    job_id: str
    type: str
    headers: dict[str, Any] = field(default_factory=dict)
    reply_to: str | None = None
    must_route: bool = False
    content_type: str = "application/json"
    content_encoding: str | None = None


@dataclass(frozen=True)
class Work:
    """One run of a step: what the letters about it say."""

    delivery: Delivery
    step: str
    worker: str
    slip: Slip | None
    started_at: datetime
    seconds: float = 0.0
    announces: bool = True


def follow(work: Work, outcome: Outcome, *, now: datetime) -> list[Letter]:
    """Every letter that an outcome asks for."""
    match outcome:
        case Done(result):
            return done(work, result.model_dump(mode="json", exclude_none=True))
        case Retry():
            return [retry(work, outcome, now=now)]
        case Dead():
            return burial(work, outcome, now=now)
        case Dropped(fault):
            return ended(work, fault)
        case Requeue():
            return []


def command_letter(
    step: str, body: dict[str, Any], *, message_id: str, job_id: str, headers: dict[str, Any], reply_to: str | None = None
) -> Letter:
    """A command to a step. Its step names the routing key and the type."""
    return Letter(channels.COMMANDS, step, _json(body), message_id, job_id, message_type(step), headers, reply_to, must_route=True)


def done(work: Work, result: dict[str, Any]) -> list[Letter]:
    """The step's event; then the next stop, or the job's end."""
    letters = events(work, EventKind.COMPLETED, result=result)
    last = ends_here(work.slip, result)
    if work.delivery.reply_to and (last or (work.slip and work.slip.reply_here)):
        letters.append(reply(work, answer(work.slip, result)))
    if last and not work.delivery.aside:
        letters += events(work, EventKind.COMPLETED, step=JOB, result=answer(work.slip, result))
    if last and work.slip and work.slip.on_refusal and refused(work.slip, result):
        letters.append(_aside(work, work.slip.on_refusal, "refused"))
    elif not last and work.slip:
        visit = Visit(step=work.step, worker=work.worker, started_at=work.started_at, seconds=work.seconds)
        letters.append(next_stop(work, after_stop(work.slip, result, visit)))
    return letters


def next_stop(work: Work, slip: Slip) -> Letter:
    step, body = depart(slip)
    answered = work.slip is not None and work.slip.reply_here
    message_id = derived_id(work.delivery.message_id, "next", step)
    return command_letter(
        step,
        body,
        message_id=message_id,
        job_id=work.delivery.job_id,
        headers=_caused(work),
        reply_to=None if answered else work.delivery.reply_to,
    )


def progress(work: Work, report: Progress) -> list[Letter]:
    """May be lost; never decides anything."""
    letters = events(work, EventKind.PROGRESS, progress=report)
    if work.slip and work.slip.on_progress:
        told = report.model_dump(mode="json", exclude_none=True)
        letters.append(_aside(work, work.slip.on_progress, f"progress/{report.progress_percent}", progress=told))
    return letters


def retry(work: Work, outcome: Retry, *, now: datetime) -> Letter:
    """A copy with attempt + 1 to a rung of the ladder, from where it goes back to the failing queue alone."""
    delivery = work.delivery
    headers = _failed(work, outcome.fault, now) | {Header.ATTEMPT.value: delivery.attempt + 1}
    exchange = channels.retry_exchange(outcome.delay)
    return Letter(
        exchange,
        delivery.queue,
        delivery.body,
        delivery.message_id,
        delivery.job_id,
        delivery.type or "",
        headers,
        delivery.reply_to,
        must_route=True,
    )


def burial(work: Work, outcome: Dead, *, now: datetime) -> list[Letter]:
    """The message as it came, to the dead letters, its cause in the headers; and the word to all who wait."""
    delivery = work.delivery
    headers = _failed(work, outcome.fault, now) | {
        Header.ATTEMPT.value: delivery.attempt,
        Header.FAULT_CODE.value: outcome.fault.code,
        Header.EXCEPTION_STACK.value: outcome.stack[-STACK_LIMIT:],
    }
    dead = channels.dead_queue(work.step)
    letter = Letter(
        "", dead, delivery.body, delivery.message_id, delivery.job_id, delivery.type or "", headers, delivery.reply_to, must_route=True
    )
    return [letter, *ended(work, outcome.fault)]


def ended(work: Work, fault: Fault) -> list[Letter]:
    """A job that will not be finished: the events, the fault to whoever awaits a reply, and the slip's own last word."""
    kind = EventKind.CANCELLED if fault.code == CANCELLED else EventKind.FAILED
    letters = events(work, kind, fault=fault)
    if not work.delivery.aside:
        letters += events(work, kind, step=JOB, fault=fault)
    if work.delivery.reply_to:
        letters.append(reply(work, fault.model_dump(mode="json"), kind="fault.v1"))
    if work.slip and work.slip.on_failure and (work.slip.on_failure.step != work.step or fault.code in NOT_THE_STEPS):
        letters.append(_aside(work, work.slip.on_failure, "failed", fault=fault.model_dump(mode="json")))
    return letters


def events(work: Work, kind: EventKind, *, step: str | None = None, **said: Any) -> list[Letter]:
    """One event, or none when the actor announces nothing."""
    return [_event(work, kind, step or work.step, **said)] if work.announces else []


def _event(work: Work, kind: EventKind, step: str, **said: Any) -> Letter:
    delivery = work.delivery
    told = Event(
        kind=kind,
        step=step,
        job_id=delivery.job_id,
        at=datetime.now(UTC),
        message_id=delivery.message_id,
        tenant=delivery.tenant,
        attempt=delivery.attempt,
        worker=work.worker,
        seconds=work.seconds,
        queued_seconds=queued_seconds(work),
        **said,
    )
    percent = [told.progress.progress_percent] if told.progress else []
    message_id = derived_id(delivery.message_id, step, kind, *percent)
    key = channels.event_key(step, kind, delivery.job_id)
    body = told.model_dump_json(exclude_none=True).encode()
    return Letter(channels.EVENTS, key, body, message_id, delivery.job_id, "event.v1", _caused(work))


def reply(work: Work, body: dict[str, Any], *, kind: str | None = None) -> Letter:
    """To the default exchange, by the queue's name. Whoever asked may be gone: that is counted, not raised."""
    delivery = work.delivery
    message_id = derived_id(delivery.message_id, "reply")
    return Letter("", delivery.reply_to or "", _json(body), message_id, delivery.job_id, kind or f"{work.step}.done.v1", _caused(work))


def delta(work: Work, body: dict[str, Any]) -> Letter:
    """A part of a reply that is still being made. Where nobody awaits it any more there is no use in making the rest."""
    delivery = work.delivery
    message_id = derived_id(delivery.message_id, "delta", delivery.attempt, str(body.get("sequence")))
    kind = f"{work.step}.delta.v1"
    return Letter("", delivery.reply_to or "", _json(body), message_id, delivery.job_id, kind, _caused(work), must_route=True)


def slip_of(body: bytes) -> Slip | None:
    """The slip of a command that is otherwise unreadable, so that its backend still hears of the failure."""
    if b'"slip"' not in body:  # a search is a thousandth of the parsing
        return None
    try:
        return Slip.model_validate(json.loads(body)["slip"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _aside(work: Work, stop: Stop, mark: str, **more: Any) -> Letter:
    """A command beside the itinerary, of which nothing follows. The job's deadline is not its own: that it passed is to be told."""
    assert work.slip is not None
    message_id = derived_id(work.delivery.message_id, "aside", stop.step, mark)
    body = command(stop, work.slip, **more)
    headers = {name: value for name, value in _caused(work).items() if name != Header.DEADLINE} | {Header.ASIDE.value: True}
    return command_letter(stop.step, body, message_id=message_id, job_id=work.delivery.job_id, headers=headers)


def _failed(work: Work, fault: Fault, now: datetime) -> dict[str, Any]:
    """Headers that a message keeps from its first failure on."""
    delivery = work.delivery
    aside = {Header.ASIDE.value: True} if delivery.aside else {}
    return (
        delivery.travelling_headers
        | aside
        | {
            Header.ORIGIN_QUEUE.value: delivery.origin.queue,
            Header.ORIGIN_EXCHANGE.value: delivery.origin.exchange,
            Header.ORIGIN_KEY.value: delivery.origin.routing_key,
            Header.FIRST_FAILED.value: delivery.first_failed_at or now.isoformat(),
            Header.LAST_FAILED.value: now.isoformat(),
            Header.FAULT_MESSAGE.value: fault.message,
            Header.EXCEPTION_TYPE.value: fault.exception_type or "",
        }
    )


def _caused(work: Work) -> dict[str, Any]:
    return work.delivery.travelling_headers | {Header.CAUSATION.value: work.delivery.message_id}


def queued_seconds(work: Work) -> float | None:
    """From publish to arrival."""
    published = work.delivery.published_at
    return max(0.0, (work.started_at - published).total_seconds()) if published else None


def _json(body: dict[str, Any]) -> bytes:
    """By pydantic's own core: of 64 kB it takes a tenth of the time."""
    return to_json(body, inf_nan_mode="constants")
