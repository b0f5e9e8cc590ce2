"""The ledger: listens to all events, keeps jobs and their steps in Postgres, answers questions about them over the bus.

It remembers nothing in the inbox: an event that comes twice replaces itself.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Connection, Pool, Record

from bus.actor import Actor, Context, Handler, OpenHandler, Resources, Transactional
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
from contracts.wire import Command, Result

QueryHandler = Callable[..., Coroutine[Any, Any, Result | Transactional]]
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
        await connection.execute(SQL["keep_event"], event.job_id, event.at, event.step, event.kind, event.message_id, percent, body)
        await connection.execute(SQL["keep_job"], *_job_row(event))

    return Transactional(EventRecorded(), write)


def _job_row(event: Event) -> tuple[Any, ...]:
    """An event of the whole job decides its state; an event of a step says that it runs."""
    whole = event.step == "job"
    said = event.result or {}
    accepted = whole and event.kind is EventKind.ACCEPTED
    return (
        event.job_id,
        said.get("kind") if accepted else None,
        STATE_BY_EVENT_KIND[event.kind] if whole else "running",
        event.tenant,
        said.get("itinerary") if accepted else None,
        event.at,
        said if whole and event.kind is EventKind.COMPLETED else None,
        event.fault.model_dump(mode="json", exclude_none=True) if whole and event.fault else None,
        search_text(said.get("order")) if accepted else None,
    )


def search_text(order: Any) -> str | None:
    """What a person would look for it by. What Postgres keeps in no text is replaced."""
    return "\n".join(iter_texts(order)).replace("\0", " ").encode(errors="replace").decode()[:MAX_SEARCH_TEXT_CHARS] or None


def iter_texts(value: Any) -> Iterable[str]:
    """Every text of an order, wherever it stands."""
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
    """One statement decides, so that two who come at once are told the same."""
    row = await database.fetchrow(SQL["claim_job"], command.job_id, command.kind, command.sha256, command.tenant)
    return JobClaimed.model_validate(dict(row.items()))


async def list_jobs(command: ListJobs, context: Context, *, database: Pool) -> Jobs:
    rows = await database.fetch(SQL["jobs"], command.state, command.tenant, command.before, command.limit, command.words)
    return Jobs(jobs=[_to_job(row) for row in rows])


def _to_job(row: Record) -> Job:
    return Job.model_validate(dict(row.items()))


def latest_steps(events: Iterable[Event]) -> Iterable[StepRecord]:
    """The last word on each step, in the order in which the steps began."""
    last: dict[tuple[str, str], Event] = {}
    for event in events:
        last[event.step, event.message_id] = event
    for event in last.values():
        told = event.model_dump(exclude={"kind", "job_id", "message_id", "tenant"})
        yield StepRecord.model_validate(told | {"state": STATE_BY_EVENT_KIND[event.kind]})


@asynccontextmanager
async def open_ledger(resources: Resources) -> AsyncIterator[Handler]:
    _require_database(resources)
    yield record_event


def with_database(handler: QueryHandler) -> OpenHandler:
    """How a question about the record is opened: with the database in its hand."""

    @asynccontextmanager
    async def opened(tools: Resources) -> AsyncIterator[Handler]:
        yield partial(handler, database=_require_database(tools))

    return opened


def _require_database(resources: Resources) -> Pool:
    if resources.database is None:
        raise PermanentError("database-missing", "the ledger keeps its record in Postgres: set DATABASE_URL")
    return resources.database


def query_actor(step: str, command: type[Command], result: type[Result], handler: QueryHandler, description: str) -> Actor:
    return Actor(
        step=step,
        command=command,
        result=result,
        open=with_database(handler),
        timeout_seconds=10,
        prefetch=16,
        deduplicate=False,
        emit_events=False,
        is_query=True,
        description=description,
    )


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
        description="Keeps every event, and from them the state of each job.",
    ),
    query_actor("job.get", GetJob, Job, get_job, "Answers with one job and its steps."),
    query_actor("job.list", ListJobs, Jobs, list_jobs, "Answers with jobs, the youngest first."),
    query_actor("job.events", GetJobEvents, JobEvents, get_job_events, "Answers with all that happened to one job."),
    query_actor("job.claim", ClaimJob, JobClaimed, claim_job, "Takes an id for a request, or tells what the id means already."),
)
