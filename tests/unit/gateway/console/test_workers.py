"""The rows and warnings of the page Workers."""

from datetime import UTC, datetime
from typing import Any

from bus.amqp.topology import QueueDepth
from contracts.broker_names import dead_letter_queue, work_queue
from contracts.discovery import StepStatus, WorkerStatus
from gateway.console.workers import (
    DEAD_LETTERS_NOT_INGESTED,
    HEALTH_CHECK_FAILED,
    NO_CONSUMER,
    NO_WORKER,
    STEP_NOT_CONSUMING,
    QueueRow,
    build_row,
    find_warnings,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def status(step: str = "image", **fields: Any) -> StepStatus:
    return StepStatus(step=step, queue=work_queue(step), prefetch=4, **fields)


def worker(*steps: StepStatus, **parts: str | None) -> WorkerStatus:
    return WorkerStatus(worker="w-1", began=NOW, steps=list(steps), parts=parts)


def row(ready: int = 0, consumers: int = 0, dead: int = 0, *statuses: StepStatus) -> QueueRow:
    return QueueRow("image", QueueDepth(ready, consumers), dead, list(statuses))


def texts(rows: list[QueueRow], *workers: WorkerStatus) -> list[str]:
    return [warning.text for warning in find_warnings(rows, list(workers))]


def test_row_has_depths_and_statuses_of_all_workers() -> None:
    depths = {work_queue("image"): QueueDepth(3, 2), dead_letter_queue("image"): QueueDepth(5, 0)}
    workers = [worker(status(in_hand=1, per_minute=2.0), status("text")), worker(status(in_hand=2))]
    row_view = build_row("image", depths, workers)
    assert (row_view.depth, row_view.dead_letter_count, row_view.in_flight, row_view.per_minute) == (QueueDepth(3, 2), 5, 3, 2.0)


def test_row_is_unused_without_messages_consumers_and_workers() -> None:
    assert row().unused
    assert QueueRow("image", None, 0, []).unused
    assert not any(used.unused for used in (row(ready=1), row(consumers=1), row(dead=1), row(0, 0, 0, status())))


def test_idle_installation_has_no_warnings() -> None:
    assert texts([row(consumers=1)], worker(status(), broker=None)) == []


def test_no_worker_and_no_consumer_are_warnings() -> None:
    assert texts([row(ready=1)]) == [NO_WORKER, NO_CONSUMER]
    assert texts([row(consumers=1)]) == []
    assert texts([row(ready=1)], worker()) == [NO_CONSUMER]


def test_dead_letters_in_queue_are_a_warning() -> None:
    warnings = list(find_warnings([row(consumers=1, dead=7)], [worker(status())]))
    assert [(warning.text, warning.arguments) for warning in warnings] == [(DEAD_LETTERS_NOT_INGESTED, {"count": 7, "step": "image"})]


def test_step_warning_replaces_those_of_its_queue_and_engine() -> None:
    paused = status(reason="engine loading", since=NOW)
    failed = worker(paused, **{"engine:image": "loading", "queue:image": "paused", "database": "unreachable"})
    warnings = list(find_warnings([row(consumers=1)], [failed]))
    assert [(warning.text, warning.since) for warning in warnings] == [(STEP_NOT_CONSUMING, NOW), (HEALTH_CHECK_FAILED, None)]
    assert warnings[1].arguments == {"part": "database", "worker": "w-1", "reason": "unreachable"}
