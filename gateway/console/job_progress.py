"""The course of a job, read from its events: which step waited, which worked, where, and how far it has come."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bus.amqp.messages import JOB_STEP
from contracts.event import Event, EventKind
from contracts.fault import Fault
from contracts.wire import Step

FINAL_STATES = {EventKind.COMPLETED: "completed", EventKind.FAILED: "failed", EventKind.CANCELLED: "cancelled"}


@dataclass
class StepProgress:
    """One message's work at one step. `asked`: when it was sent; `began`: when the work began; None where no event tells."""

    step: str
    message_id: str
    state: str = "waiting"
    sent_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    duration_seconds: float | None = None
    worker: str | None = None
    attempt: int = 1
    percent: int | None = None
    step_counts: tuple[int, int] | None = None
    remaining_seconds: int = 0
    preview: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None

    @property
    def queued_seconds(self) -> float | None:
        """Seconds in the queue."""
        return (self.started_at - self.sent_at).total_seconds() if self.started_at and self.sent_at else None

    @property
    def detached(self) -> bool:
        """Whether it ran beside the job's way: a word of progress to the backend."""
        return self.step == Step.WEBHOOK and self.result.get("kind") == "progress"

    def apply(self, event: Event) -> None:
        self.worker, self.attempt = event.worker or self.worker, event.attempt
        if event.kind is EventKind.PROGRESS and self.ended_at is None and event.progress:
            self._apply_progress(event)
        elif event.kind in FINAL_STATES:
            self._apply_end(event)

    def _apply_progress(self, event: Event) -> None:
        assert event.progress
        self.state, self.percent, self.remaining_seconds = "running", event.progress.progress_percent, event.progress.estimated_seconds
        self.step_counts = (event.progress.current_step, event.progress.total_steps)
        self.preview = event.progress.preview or self.preview
        if self.started_at is None:
            self.started_at = event.at - timedelta(seconds=event.seconds or 0)
            self.sent_at = self.started_at - timedelta(seconds=event.queued_seconds or 0)

    def _apply_end(self, event: Event) -> None:
        self.state, self.ended_at, self.duration_seconds = FINAL_STATES[event.kind], event.at, event.seconds
        self.started_at = event.at - timedelta(seconds=event.seconds or 0)
        self.sent_at = self.started_at - timedelta(seconds=event.queued_seconds or 0)
        self.percent = 100 if event.kind is EventKind.COMPLETED else self.percent
        self.result, self.fault, self.preview = event.result or {}, event.fault, None


@dataclass
class JobProgress:
    """Made event by event."""

    itinerary: list[str] = field(default_factory=list)
    order: dict[str, Any] | None = None
    kind: str | None = None
    tenant: str | None = None
    accepted_at: datetime | None = None
    ended_at: datetime | None = None
    state: str = "accepted"
    result: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None
    steps: dict[tuple[str, str], StepProgress] = field(default_factory=dict)

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> "JobProgress":
        course = cls()
        for event in events:
            course.apply(event)
        return course

    def apply(self, event: Event) -> None:
        self.tenant = event.tenant or self.tenant
        if event.step != JOB_STEP:
            leg = self.steps.setdefault((event.step, event.message_id), StepProgress(event.step, event.message_id))
            leg.apply(event)
            leg.sent_at = self._estimate_sent_at(leg)
            self.state = "running" if self.state == "accepted" else self.state
        elif event.kind is EventKind.ACCEPTED:
            said = event.result or {}
            self.accepted_at, self.kind, self.order = event.at, said.get("kind"), said.get("order")
            self.itinerary = [str(step) for step in said.get("itinerary") or ()]
        else:
            self.state, self.ended_at = FINAL_STATES.get(event.kind, self.state), event.at
            self.result, self.fault = event.result or {}, event.fault

    @property
    def finished(self) -> bool:
        return self.ended_at is not None

    @property
    def main_steps(self) -> list[StepProgress]:
        """The legs of the way itself, and what is still to come."""
        here = [leg for leg in self.steps.values() if not leg.detached]
        return [*here, *self._pending_steps(here)]

    @property
    def percent(self) -> int:
        """How much of the way is behind; a step counts as much as another."""
        if self.state == "completed":
            return 100
        legs = self.main_steps
        return round(sum(leg.percent or 0 for leg in legs) / len(legs)) if legs else 0

    @property
    def webhook_steps(self) -> list[StepProgress]:
        return [leg for leg in self.steps.values() if leg.step == Step.WEBHOOK]

    @property
    def duration_seconds(self) -> float | None:
        return (self.ended_at - self.accepted_at).total_seconds() if self.ended_at and self.accepted_at else None

    def _estimate_sent_at(self, step: StepProgress) -> datetime | None:
        """When its message was sent: AMQP's own time is in whole seconds, but nothing is sent before what led to it had ended."""
        if step.sent_at is None or step.started_at is None:
            return step.sent_at
        before = [
            other.ended_at for other in self.steps.values() if other is not step and other.ended_at and other.ended_at <= step.started_at
        ]
        return min(step.started_at, max([step.sent_at, *before, *([self.accepted_at] if self.accepted_at else [])]))

    def _pending_steps(self, started: list[StepProgress]) -> Iterator[StepProgress]:
        """A step that runs again shows twice; what is not begun shows once, unless the job is over."""
        if self.finished:
            return
        left = list(self.itinerary)
        for leg in started:
            if leg.step in left:
                left.remove(leg.step)
        for step in left:
            yield StepProgress(step, "")
