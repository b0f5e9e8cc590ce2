"""The page Workers: worker processes, queue depths, engine counters, and warnings."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from bus.amqp.discovery import discover_workers, queue_depths
from bus.amqp.topology import QueueDepth
from contracts.broker_names import dead_letter_queue, work_queue
from contracts.discovery import StepStatus, WorkerStatus
from contracts.steps import COMMANDS
from gateway.callers import require_operator
from gateway.console.guard import ConsoleRoute
from gateway.console.rendering import render_page
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.services import services_of

PAGE_PATH = f"{CONSOLE_PATH}/workers"
DISCOVERY_SECONDS = 3.0
KNOWN_STEPS = (*COMMANDS, "ledger", "dead-letters")
NO_WORKER = "No worker responds. Start one: atelier up, or atelier run STEP."
NO_CONSUMER = "{count} messages are queued for {step}, which has no consumer. Start one: atelier run {step}"
DEAD_LETTERS_NOT_INGESTED = "{count} dead letters of {step} are not ingested. Start: atelier run dead-letters"
STEP_NOT_CONSUMING = "{step} on {worker} is not consuming: {reason}"
HEALTH_CHECK_FAILED = "{part} of {worker}: {reason}"

router = APIRouter(prefix=PAGE_PATH, route_class=ConsoleRoute, include_in_schema=False, dependencies=[Depends(require_operator)])


@dataclass(frozen=True)
class QueueRow:
    """The queue of one step, with the status of every worker that serves it. `depth`: None when there is no such queue."""

    step: str
    depth: QueueDepth | None
    dead_letter_count: int
    step_statuses: list[StepStatus]

    @property
    def in_flight(self) -> int:
        return sum(status.in_hand for status in self.step_statuses)

    @property
    def per_minute(self) -> float | None:
        rates = [status.per_minute for status in self.step_statuses if status.per_minute is not None]
        return sum(rates) if rates else None

    @property
    def unused(self) -> bool:
        empty = self.depth is None or not (self.depth.ready or self.depth.consumers)
        return empty and not self.step_statuses and not self.dead_letter_count


@dataclass(frozen=True)
class WorkerWarning:
    """A text to translate, and the values of its placeholders."""

    text: str
    arguments: dict[str, Any]
    since: datetime | None = None


@router.get("")
async def show_workers(request: Request) -> Response:
    publisher = services_of(request).publisher
    workers = await discover_workers(publisher, DISCOVERY_SECONDS)
    steps = [*KNOWN_STEPS, *sorted({status.step for worker in workers for status in worker.steps} - set(KNOWN_STEPS))]
    depths = await queue_depths(publisher, [*map(work_queue, steps), *map(dead_letter_queue, steps)])
    rows = [build_row(step, depths, workers) for step in steps]
    warnings = list(find_warnings(rows, workers))
    return render_page(request, "workers.html", workers=workers, rows=[row for row in rows if not row.unused], warnings=warnings)


def build_row(step: str, depths: dict[str, QueueDepth | None], workers: list[WorkerStatus]) -> QueueRow:
    step_statuses = [status for worker in workers for status in worker.steps if status.step == step]
    dead_letters = depths.get(dead_letter_queue(step))
    return QueueRow(step, depths.get(work_queue(step)), dead_letters.ready if dead_letters else 0, step_statuses)


def find_warnings(rows: list[QueueRow], workers: list[WorkerStatus]) -> Iterator[WorkerWarning]:
    if not workers and not any(row.depth and row.depth.consumers for row in rows):
        yield WorkerWarning(NO_WORKER, {})
    for row in rows:
        if row.depth and row.depth.ready and not row.depth.consumers:
            yield WorkerWarning(NO_CONSUMER, {"count": row.depth.ready, "step": row.step})
        if row.dead_letter_count:
            yield WorkerWarning(DEAD_LETTERS_NOT_INGESTED, {"count": row.dead_letter_count, "step": row.step})
    for worker in workers:
        yield from _worker_warnings(worker)


def _worker_warnings(worker: WorkerStatus) -> Iterator[WorkerWarning]:
    """Steps that do not consume; then failed health checks (`parts`), except those of the queue and engine of such a step."""
    reported: set[str] = set()
    for status in worker.steps:
        if status.reason:
            reported |= {f"queue:{status.step}", f"engine:{status.step}"}
            arguments = {"step": status.step, "worker": worker.worker, "reason": status.reason}
            yield WorkerWarning(STEP_NOT_CONSUMING, arguments, status.since)
    for part, reason in worker.parts.items():
        if reason and part not in reported:
            yield WorkerWarning(HEALTH_CHECK_FAILED, {"part": part, "worker": worker.worker, "reason": reason})
