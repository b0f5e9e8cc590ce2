"""Events of one job, at offsets in seconds from START."""

from datetime import UTC, datetime, timedelta
from typing import Any

from bus.amqp.messages import JOB_STEP
from contracts.event import Event, EventKind, Progress

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def at(offset: float) -> datetime:
    return START + timedelta(seconds=offset)


def job_event(kind: EventKind, offset: float, **fields: Any) -> Event:
    return Event(kind=kind, step=JOB_STEP, job_id="j", message_id="j", at=at(offset), **fields)


def step_event(kind: EventKind, step: str, offset: float, message_id: str | None = None, **fields: Any) -> Event:
    return Event(kind=kind, step=step, job_id="j", message_id=message_id or f"m-{step}", at=at(offset), worker="w-1", **fields)


def accepted(*itinerary: str, **order: Any) -> Event:
    return job_event(EventKind.ACCEPTED, 0, result={"itinerary": list(itinerary), "order": order or None})


def progress(percent: int, **fields: Any) -> Progress:
    return Progress(current_step=percent // 10, total_steps=10, progress_percent=percent, **fields)
