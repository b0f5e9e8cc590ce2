"""The course of a job, read from its events: which step waited, which worked, where, and how far it has come."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bus.letters import JOB
from contracts.event import Event, EventKind
from contracts.fault import Fault
from contracts.wire import Step

ENDED = {EventKind.COMPLETED: "completed", EventKind.FAILED: "failed", EventKind.CANCELLED: "cancelled"}


@dataclass
class Leg:
    """One message's work at one step. `asked`: when it was sent; `began`: when the work began; None where no event tells."""

    step: str
    message_id: str
    state: str = "waiting"
    asked: datetime | None = None
    began: datetime | None = None
    ended: datetime | None = None
    seconds: float | None = None
    worker: str | None = None
    attempt: int = 1
    percent: int | None = None
    step_of: tuple[int, int] | None = None
    seconds_left: int = 0
    preview: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None

    @property
    def waited(self) -> float | None:
        """Seconds in the queue."""
        return (self.began - self.asked).total_seconds() if self.began and self.asked else None

    @property
    def aside(self) -> bool:
        """Whether it ran beside the job's way: a word of progress to the backend."""
        return self.step == Step.WEBHOOK and self.result.get("kind") == "progress"

    def hear(self, event: Event) -> None:
        self.worker, self.attempt = event.worker or self.worker, event.attempt
        if event.kind is EventKind.PROGRESS and self.ended is None and event.progress:
            self._come(event)
        elif event.kind in ENDED:
            self._end(event)

    def _come(self, event: Event) -> None:
        assert event.progress
        self.state, self.percent, self.seconds_left = "running", event.progress.progress_percent, event.progress.estimated_seconds
        self.step_of = (event.progress.current_step, event.progress.total_steps)
        self.preview = event.progress.preview or self.preview
        if self.began is None:
            self.began = event.at - timedelta(seconds=event.seconds or 0)
            self.asked = self.began - timedelta(seconds=event.queued_seconds or 0)

    def _end(self, event: Event) -> None:
        self.state, self.ended, self.seconds = ENDED[event.kind], event.at, event.seconds
        self.began = event.at - timedelta(seconds=event.seconds or 0)
        self.asked = self.began - timedelta(seconds=event.queued_seconds or 0)
        self.percent = 100 if event.kind is EventKind.COMPLETED else self.percent
        self.result, self.fault, self.preview = event.result or {}, event.fault, None


@dataclass
class Course:
    """Made event by event."""

    itinerary: list[str] = field(default_factory=list)
    order: dict[str, Any] | None = None
    kind: str | None = None
    tenant: str | None = None
    accepted: datetime | None = None
    ended: datetime | None = None
    state: str = "accepted"
    result: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None
    legs: dict[tuple[str, str], Leg] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Course":
        course = cls()
        for event in events:
            course.hear(event)
        return course

    def hear(self, event: Event) -> None:
        self.tenant = event.tenant or self.tenant
        if event.step != JOB:
            leg = self.legs.setdefault((event.step, event.message_id), Leg(event.step, event.message_id))
            leg.hear(event)
            leg.asked = self._sent(leg)
            self.state = "running" if self.state == "accepted" else self.state
        elif event.kind is EventKind.ACCEPTED:
            said = event.result or {}
            self.accepted, self.kind, self.order = event.at, said.get("kind"), said.get("order")
            self.itinerary = [str(step) for step in said.get("itinerary") or ()]
        else:
            self.state, self.ended = ENDED.get(event.kind, self.state), event.at
            self.result, self.fault = event.result or {}, event.fault

    @property
    def over(self) -> bool:
        return self.ended is not None

    @property
    def main(self) -> list[Leg]:
        """The legs of the way itself, and what is still to come."""
        here = [leg for leg in self.legs.values() if not leg.aside]
        return [*here, *self._to_come(here)]

    @property
    def percent(self) -> int:
        """How much of the way is behind; a step counts as much as another."""
        if self.state == "completed":
            return 100
        legs = self.main
        return round(sum(leg.percent or 0 for leg in legs) / len(legs)) if legs else 0

    @property
    def webhooks(self) -> list[Leg]:
        return [leg for leg in self.legs.values() if leg.step == Step.WEBHOOK]

    @property
    def seconds(self) -> float | None:
        return (self.ended - self.accepted).total_seconds() if self.ended and self.accepted else None

    def _sent(self, leg: Leg) -> datetime | None:
        """When its message was sent: AMQP's own time is in whole seconds, but nothing is sent before what led to it had ended."""
        if leg.asked is None or leg.began is None:
            return leg.asked
        before = [other.ended for other in self.legs.values() if other is not leg and other.ended and other.ended <= leg.began]
        return min(leg.began, max([leg.asked, *before, *([self.accepted] if self.accepted else [])]))

    def _to_come(self, here: list[Leg]) -> Iterator[Leg]:
        """A step that runs again shows twice; what is not begun shows once, unless the job is over."""
        if self.over:
            return
        left = list(self.itinerary)
        for leg in here:
            if leg.step in left:
                left.remove(leg.step)
        for step in left:
            yield Leg(step, "")
