"""The workshop at a glance: who is alive, what waits, what the engines do, and what is wrong, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from bus.amqp.discovery import QueueDepth, discover_workers, queue_depths
from contracts.broker_names import dead_letter_queue, work_queue
from contracts.discovery import StepStatus, WorkerStatus
from contracts.steps import COMMANDS
from gateway.callers import require_operator
from gateway.console.guard import ConsoleRoute
from gateway.console.rendering import render_page
from gateway.middleware.sessions import CONSOLE_PATH

DISCOVERY_SECONDS = 3.0
KNOWN_STEPS = (*COMMANDS, "ledger", "dead-letters")
NO_CONSUMER = "{count} orders wait for {step} and nobody takes them. Start it: atelier run {step}"
DEAD_LETTERS_NOT_INGESTED = "{count} dead letters of {step} were not taken in. Start: atelier run dead-letters"
STEP_NOT_CONSUMING = "{step} at {worker} does no work: {reason}"

router = APIRouter(
    prefix=f"{CONSOLE_PATH}/workshop", route_class=ConsoleRoute, include_in_schema=False, dependencies=[Depends(require_operator)]
)


@dataclass(frozen=True)
class QueueRow:
    """One queue, with all who serve it."""

    step: str
    depth: QueueDepth | None
    dead_letter_count: int
    step_statuses: list[StepStatus]

    @property
    def in_flight(self) -> int:
        return sum(at.in_hand for at in self.step_statuses)

    @property
    def per_minute(self) -> float | None:
        known = [at.per_minute for at in self.step_statuses if at.per_minute is not None]
        return sum(known) if known else None

    @property
    def unused(self) -> bool:
        return (
            not self.step_statuses and (self.depth is None or not (self.depth.ready or self.depth.consumers)) and not self.dead_letter_count
        )


@dataclass(frozen=True)
class WorkerWarning:
    """Words with what fills them, so that each language can say it."""

    text: str
    arguments: dict[str, Any]
    since: datetime | None = None


@router.get("")
async def show_workers(request: Request) -> Response:
    outbox = request.app.state.publisher
    present = await discover_workers(outbox, DISCOVERY_SECONDS)
    steps = [*KNOWN_STEPS, *sorted({at.step for here in present for at in here.steps} - set(KNOWN_STEPS))]
    queues = [*map(work_queue, steps), *map(dead_letter_queue, steps)]
    depths = await queue_depths(outbox, queues)
    rows = [build_row(step, depths, present) for step in steps]
    shown = [row for row in rows if not row.unused]
    return render_page(request, "workshop.html", present=present, rows=shown, warnings=list(find_warnings(rows, present)))


def build_row(step: str, depths: dict[str, QueueDepth | None], workers: list[WorkerStatus]) -> QueueRow:
    crew = [at for here in workers for at in here.steps if at.step == step]
    dead = depths.get(dead_letter_queue(step))
    return QueueRow(step, depths.get(work_queue(step)), dead.ready if dead else 0, crew)


def find_warnings(rows: list[QueueRow], workers: list[WorkerStatus]) -> Iterator[WorkerWarning]:
    if not workers and not any(row.depth and row.depth.consumers for row in rows):
        yield WorkerWarning("No actor answers. Start them: atelier up, or atelier run STEP.", {})
    for row in rows:
        if row.depth and row.depth.ready and not row.depth.consumers:
            yield WorkerWarning(NO_CONSUMER, {"count": row.depth.ready, "step": row.step})
        if row.dead_letter_count:
            yield WorkerWarning(DEAD_LETTERS_NOT_INGESTED, {"count": row.dead_letter_count, "step": row.step})
    for here in workers:
        told = set()
        for at in here.steps:
            if at.reason:
                told |= {f"queue:{at.step}", f"engine:{at.step}"}
                yield WorkerWarning(STEP_NOT_CONSUMING, {"step": at.step, "worker": here.worker, "reason": at.reason}, at.since)
        for part, reason in here.parts.items():
            if reason and part not in told:
                yield WorkerWarning("{part} of {worker}: {reason}", {"part": part, "worker": here.worker, "reason": reason})
