"""The state of a job and of each of its steps, built from the job's events."""

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
    """One message at one step. `sent_at`: when it was published; times are None until an event has them. `step_counts`: (done, total)."""

    step: str
    message_id: str
    state: str = "waiting"
    sent_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    duration_seconds: float | None = None
    device_seconds: float | None = None
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
        """Time in the queue."""
        return (self.started_at - self.sent_at).total_seconds() if self.started_at and self.sent_at else None

    @property
    def detached(self) -> bool:
        """Whether the step is not part of the itinerary: a progress webhook."""
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
            self._set_start(event)

    def _apply_end(self, event: Event) -> None:
        self.state, self.ended_at, self.duration_seconds = FINAL_STATES[event.kind], event.at, event.seconds
        self.device_seconds = event.device_seconds
        self._set_start(event)
        self.percent = 100 if event.kind is EventKind.COMPLETED else self.percent
        self.result, self.fault, self.preview = event.result or {}, event.fault, None

    def _set_start(self, event: Event) -> None:
        self.started_at = event.at - timedelta(seconds=event.seconds or 0)
        self.sent_at = self.started_at - timedelta(seconds=event.queued_seconds or 0)


@dataclass
class JobProgress:
    """A job and its steps by (step, message id), in the order of their first events."""

    itinerary: list[str] = field(default_factory=list)
    order: dict[str, Any] | None = None
    accepted_at: datetime | None = None
    ended_at: datetime | None = None
    state: str = "accepted"
    result: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None
    steps: dict[tuple[str, str], StepProgress] = field(default_factory=dict)

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> "JobProgress":
        progress = cls()
        for event in events:
            progress.apply(event)
        return progress

    def apply(self, event: Event) -> None:
        if event.step != JOB_STEP:
            self._apply_step_event(event)
        elif event.kind is EventKind.ACCEPTED:
            accepted = event.result or {}
            self.accepted_at, self.order = event.at, accepted.get("order")
            self.itinerary = [str(step) for step in accepted.get("itinerary") or ()]
        else:
            self.state, self.ended_at = FINAL_STATES.get(event.kind, self.state), event.at
            self.result, self.fault = event.result or {}, event.fault

    def _apply_step_event(self, event: Event) -> None:
        step = self.steps.setdefault((event.step, event.message_id), StepProgress(event.step, event.message_id))
        step.apply(event)
        step.sent_at = self._estimate_sent_at(step)
        self.state = "running" if self.state == "accepted" else self.state

    @property
    def finished(self) -> bool:
        return self.ended_at is not None

    @property
    def main_steps(self) -> list[StepProgress]:
        """The steps of the itinerary: those with events, then the pending ones."""
        started = [step for step in self.steps.values() if not step.detached]
        return [*started, *self._pending_steps(started)]

    @property
    def percent(self) -> int:
        """Percentage of the itinerary that is done. All steps have equal weight."""
        if self.state == "completed":
            return 100
        steps = self.main_steps
        return round(sum(step.percent or 0 for step in steps) / len(steps)) if steps else 0

    @property
    def webhook_steps(self) -> list[StepProgress]:
        return [step for step in self.steps.values() if step.step == Step.WEBHOOK]

    @property
    def duration_seconds(self) -> float | None:
        return (self.ended_at - self.accepted_at).total_seconds() if self.ended_at and self.accepted_at else None

    @property
    def device_seconds(self) -> float | None:
        """Busy time of the device for all its steps; None where none was measured."""
        measured = [step.device_seconds for step in self.steps.values() if step.device_seconds is not None]
        return sum(measured) if measured else None

    def _estimate_sent_at(self, step: StepProgress) -> datetime | None:
        """When the message was published. AMQP timestamps have whole seconds; no message is published before the previous step ended."""
        if step.sent_at is None or step.started_at is None:
            return step.sent_at
        earlier_ends = [
            other.ended_at for other in self.steps.values() if other is not step and other.ended_at and other.ended_at <= step.started_at
        ]
        return min(step.started_at, max([step.sent_at, *earlier_ends, *([self.accepted_at] if self.accepted_at else [])]))

    def _pending_steps(self, started: list[StepProgress]) -> Iterator[StepProgress]:
        """Steps of the itinerary without events; none once the job has ended."""
        if self.finished:
            return
        pending = list(self.itinerary)
        for step in started:
            if step.step in pending:
                pending.remove(step.step)
        for name in pending:
            yield StepProgress(name, "")
