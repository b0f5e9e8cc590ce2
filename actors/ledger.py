"""The ledger: listens to all events, stores jobs and their steps in Postgres, and answers queries about them.

It needs no inbox: an event that is delivered twice changes nothing the second time. A job belongs to the tenant of its claim, else of its
first event; an event of another tenant is not stored. A job that has ended keeps its end, except that a replay may complete it. Ended jobs
are deleted after LEDGER_RETENTION_DAYS.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog
from asyncpg import Connection, Pool, Record

from actors.settings import LedgerSettings
from bus.actor import Actor, Context, Handler, Resources, Transactional, query_actor, with_database
from bus.errors import PermanentError
from bus.persistence.purge import PURGE_INTERVAL_SECONDS, purge_periodically
from bus.sql import load_queries
from contracts import broker_names
from contracts.event import Event, EventKind
from contracts.job import (
    ClaimJob,
    GetJob,
    GetJobEvents,
    Job,
    JobClaimed,
    JobEvents,
    Jobs,
    JobState,
    ListJobs,
    StepRecord,
    unknown_job_message,
)
from contracts.wire import Result

DATABASE_MISSING = "the ledger is kept in Postgres: set DATABASE_URL"
SQL = load_queries(__file__, "ledger.sql")
STATE_BY_EVENT_KIND: dict[EventKind, JobState] = {
    EventKind.ACCEPTED: "accepted",
    EventKind.PROGRESS: "running",
    EventKind.COMPLETED: "completed",
    EventKind.FAILED: "failed",
    EventKind.CANCELLED: "cancelled",
}
TERMINAL_EVENT_KINDS = frozenset({EventKind.COMPLETED, EventKind.FAILED, EventKind.CANCELLED})
MAX_SEARCH_TEXT_CHARS = 8192
PURGE_BATCH_SIZE = 1000

log = structlog.get_logger()


class EventRecorded(Result):
    """The event is in the ledger, or is none of the job's tenant."""


async def record_event(event: Event, context: Context) -> Transactional:
    async def write(connection: Connection) -> None:
        job = await connection.fetchrow(SQL["upsert_job"], *_upsert_job_arguments(event))
        if job is None:
            log.warning("ledger.event_foreign", job_id=event.job_id, step=event.step, kind=event.kind, tenant=event.tenant)
        elif job["ended_by"] == (end := _job_end(event)) or end is None:
            percent = event.progress.progress_percent if event.progress else 0
            body = event.model_dump(mode="json", exclude_none=True)
            await connection.execute(SQL["upsert_event"], event.job_id, event.at, event.step, event.kind, event.message_id, percent, body)

    return Transactional(EventRecorded(), write)


def _job_end(event: Event) -> str | None:
    """Names the event that ends a job; None for any other. Of two that say so, only the one that the job was ended by is stored."""
    return f"{event.kind}/{event.message_id}" if event.step == "job" and event.kind in TERMINAL_EVENT_KINDS else None


def _upsert_job_arguments(event: Event) -> tuple[Any, ...]:
    """In the order of the query `upsert_job`. An event of the whole job sets its state; one of a step means that the job is running."""
    is_job_event = event.step == "job"
    result = event.result or {}
    accepted = is_job_event and event.kind is EventKind.ACCEPTED
    return (
        event.job_id,
        result.get("kind") if accepted else None,
        STATE_BY_EVENT_KIND[event.kind] if is_job_event else "running",
        event.tenant,
        result.get("itinerary") if accepted else None,
        event.at,
        result if is_job_event and event.kind is EventKind.COMPLETED else None,
        event.fault.model_dump(mode="json", exclude_none=True) if is_job_event and event.fault else None,
        search_text(result.get("order")) if accepted else None,
        _job_end(event),
    )


def search_text(order: Any) -> str | None:
    """All texts of an order, for searching. Characters that Postgres cannot store in a text are replaced."""
    return "\n".join(iter_texts(order)).replace("\0", " ").encode(errors="replace").decode()[:MAX_SEARCH_TEXT_CHARS] or None


def iter_texts(value: Any) -> Iterable[str]:
    """Every string in a JSON value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from iter_texts(part)


async def get_job(command: GetJob, context: Context, *, database: Pool) -> Job:
    """Raises PermanentError("job-unknown")."""
    row = await database.fetchrow(SQL["job"], command.job_id, context.tenant)
    if row is None and (claimed := await database.fetchrow(SQL["claimed_job"], command.job_id, context.tenant)):
        return _to_job(claimed)
    if row is None:
        raise PermanentError("job-unknown", unknown_job_message(command.job_id))
    events = [Event.model_validate(record["body"]) for record in await database.fetch(SQL["events"], command.job_id)]
    steps = list(latest_steps(events))
    measured = [step.device_seconds for step in steps if step.device_seconds is not None]
    return _to_job(row).model_copy(update={"steps": steps, "device_seconds": sum(measured) if measured else None})


async def get_job_events(command: GetJobEvents, context: Context, *, database: Pool) -> JobEvents:
    return JobEvents(events=[record["body"] for record in await database.fetch(SQL["all_events"], command.job_id, context.tenant)])


async def claim_job(command: ClaimJob, context: Context, *, database: Pool) -> JobClaimed:
    """One statement decides, so that two concurrent requests for one id get consistent answers.

    Raises PermanentError("tenant-foreign" · "generation-foreign").
    """
    tenant = context.resolve_tenant(command.tenant)
    if tenant and command.generation_id is not None:
        await claim_generation(command.backend, command.generation_id, tenant, database)
    row = await database.fetchrow(SQL["claim_job"], command.job_id, command.kind, command.sha256, tenant)
    return JobClaimed.model_validate(dict(row.items()))


async def claim_generation(backend: str, generation_id: int, tenant: str, database: Pool) -> None:
    """Reserve a generation of the backend for its first tenant. Raises PermanentError("generation-foreign") for another one."""
    if await database.fetchval(SQL["claim_generation"], backend, generation_id, tenant) != tenant:
        message = f"generation {generation_id} belongs to another tenant: order with a generation id of your own, or without one"
        raise PermanentError("generation-foreign", message)


async def list_jobs(command: ListJobs, context: Context, *, database: Pool) -> Jobs:
    """Raises PermanentError("tenant-foreign")."""
    tenant = context.resolve_tenant(command.tenant)
    query = SQL["jobs_with_pictures" if command.pictures else "jobs"]
    rows = await database.fetch(query, command.state, tenant, command.before, command.limit, command.words)
    return Jobs(jobs=[_to_job(row) for row in rows])


def _to_job(row: Record) -> Job:
    return Job.model_validate(dict(row.items()))


def latest_steps(events: Iterable[Event]) -> Iterable[StepRecord]:
    """The latest event of each step, in the order in which the steps began."""
    last: dict[tuple[str, str], Event] = {}
    for event in events:
        last[event.step, event.message_id] = event
    for event in last.values():
        fields = event.model_dump(exclude={"kind", "job_id", "message_id", "tenant"})
        yield StepRecord.model_validate(fields | {"state": STATE_BY_EVENT_KIND[event.kind]})


@asynccontextmanager
async def open_ledger(resources: Resources) -> AsyncIterator[Handler]:
    """Deletes old jobs in the background, inside the block."""
    database, days = resources.require_database(DATABASE_MISSING), LedgerSettings().retention_days
    if not days:
        yield record_event
        return
    async with purge_periodically("jobs", partial(purge_jobs, database, days), PURGE_INTERVAL_SECONDS):
        yield record_event


async def purge_jobs(database: Pool, days: float) -> int:
    """Delete the jobs that ended more than `days` ago, in batches, with their events and claims; returns how many jobs."""
    jobs, *_ = [await _purge(database, SQL[name], days) for name in ("purge_jobs", "purge_claims", "purge_generations")]
    return jobs


async def _purge(database: Pool, statement: str, days: float) -> int:
    rows = 0
    while count := await database.fetchval(statement, days, PURGE_BATCH_SIZE):
        rows += count
    return rows


job_query = partial(query_actor, timeout_seconds=10, prefetch=16)
open_with_database = partial(with_database, missing=DATABASE_MISSING)

ACTORS = (
    Actor(
        step="ledger",
        command=Event,
        result=EventRecorded,
        open=open_ledger,
        timeout_seconds=30,
        prefetch=32,
        deduplicate=False,
        emit_events=False,
        exchange=broker_names.EVENTS_EXCHANGE,
        routing_keys=("#",),
        schema=SQL["schema"],
        description="Stores every event, and derives the state of each job from them.",
    ),
    job_query("job.get", GetJob, Job, open_with_database(get_job), "Returns one job and its steps."),
    job_query("job.list", ListJobs, Jobs, open_with_database(list_jobs), "Returns jobs, the newest first."),
    job_query("job.events", GetJobEvents, JobEvents, open_with_database(get_job_events), "Returns all events of one job."),
    job_query(
        "job.claim",
        ClaimJob,
        JobClaimed,
        open_with_database(claim_job),
        "Reserves a job id for a request, or returns the request that has reserved it.",
    ),
)
