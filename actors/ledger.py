"""The ledger: listens to all events, stores jobs and their steps in Postgres, and answers queries about them.

It needs no inbox: an event that is delivered twice replaces itself.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Connection, Pool, Record

from bus.actor import Actor, Context, Handler, Resources, Transactional, query_actor, with_database
from bus.errors import PermanentError
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
MAX_SEARCH_TEXT_CHARS = 8192


class EventRecorded(Result):
    """The event is in the ledger."""


async def record_event(event: Event, context: Context) -> Transactional:
    async def write(connection: Connection) -> None:
        percent = event.progress.progress_percent if event.progress else 0
        body = event.model_dump(mode="json", exclude_none=True)
        await connection.execute(SQL["upsert_event"], event.job_id, event.at, event.step, event.kind, event.message_id, percent, body)
        await connection.execute(SQL["upsert_job"], *_upsert_job_arguments(event))

    return Transactional(EventRecorded(), write)


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
    row = await database.fetchrow(SQL["job"], command.job_id)
    if row is None and (claimed := await database.fetchrow(SQL["claimed_job"], command.job_id)):
        return _to_job(claimed)
    if row is None:
        raise PermanentError("job-unknown", unknown_job_message(command.job_id))
    events = [Event.model_validate(record["body"]) for record in await database.fetch(SQL["events"], command.job_id)]
    return _to_job(row).model_copy(update={"steps": list(latest_steps(events))})


async def get_job_events(command: GetJobEvents, context: Context, *, database: Pool) -> JobEvents:
    return JobEvents(events=[record["body"] for record in await database.fetch(SQL["all_events"], command.job_id)])


async def claim_job(command: ClaimJob, context: Context, *, database: Pool) -> JobClaimed:
    """One statement decides, so that two concurrent requests for one id get consistent answers."""
    row = await database.fetchrow(SQL["claim_job"], command.job_id, command.kind, command.sha256, command.tenant)
    return JobClaimed.model_validate(dict(row.items()))


async def list_jobs(command: ListJobs, context: Context, *, database: Pool) -> Jobs:
    rows = await database.fetch(SQL["jobs"], command.state, command.tenant, command.before, command.limit, command.words)
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
    resources.require_database(DATABASE_MISSING)
    yield record_event


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
