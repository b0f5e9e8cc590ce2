"""The ledger: listens to all events, keeps jobs and their steps in Postgres, answers questions about them over the bus.

It remembers nothing in the inbox: an event that comes twice replaces itself.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Connection, Pool, Record

from bus.actor import Actor, Context, Handler, Open, Tools, Transactional
from bus.errors import PermanentError
from bus.sql import load_queries
from contracts import channels
from contracts.event import Event, EventKind
from contracts.job import ClaimJob, GetJob, GetJobEvents, Job, JobClaimed, JobEvents, Jobs, ListJobs, State, StepRecord, unknown
from contracts.wire import Command, Result

Answer = Callable[..., Coroutine[Any, Any, Result | Transactional]]
SQL = load_queries(__file__, "ledger.sql")
STATES: dict[EventKind, State] = {
    EventKind.ACCEPTED: "accepted",
    EventKind.PROGRESS: "running",
    EventKind.COMPLETED: "completed",
    EventKind.FAILED: "failed",
    EventKind.CANCELLED: "cancelled",
}


LONGEST_WORDS = 8192


class Kept(Result):
    """The event is in the ledger."""


async def keep(event: Event, context: Context) -> Transactional:
    async def write(connection: Connection) -> None:
        percent = event.progress.progress_percent if event.progress else 0
        body = event.model_dump(mode="json", exclude_none=True)
        await connection.execute(SQL["keep_event"], event.job_id, event.at, event.step, event.kind, event.message_id, percent, body)
        await connection.execute(SQL["keep_job"], *_job_row(event))

    return Transactional(Kept(), write)


def _job_row(event: Event) -> tuple[Any, ...]:
    """An event of the whole job decides its state; an event of a step says that it runs."""
    whole = event.step == "job"
    said = event.result or {}
    accepted = whole and event.kind is EventKind.ACCEPTED
    return (
        event.job_id,
        said.get("kind") if accepted else None,
        STATES[event.kind] if whole else "running",
        event.tenant,
        said.get("itinerary") if accepted else None,
        event.at,
        said if whole and event.kind is EventKind.COMPLETED else None,
        event.fault.model_dump(mode="json", exclude_none=True) if whole and event.fault else None,
        words_of(said.get("order")) if accepted else None,
    )


def words_of(order: Any) -> str | None:
    """What a person would look for it by. What Postgres keeps in no text is replaced."""
    return "\n".join(texts_in(order)).replace("\0", " ").encode(errors="replace").decode()[:LONGEST_WORDS] or None


def texts_in(value: Any) -> Iterable[str]:
    """Every text of an order, wherever it stands."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)


async def get_job(command: GetJob, context: Context, *, database: Pool) -> Job:
    """Raises PermanentError("job-unknown")."""
    row = await database.fetchrow(SQL["job"], command.job_id)
    if row is None and (claimed := await database.fetchrow(SQL["claimed_job"], command.job_id)):
        return _job(claimed)
    if row is None:
        raise PermanentError("job-unknown", unknown(command.job_id))
    events = [Event.model_validate(record["body"]) for record in await database.fetch(SQL["events"], command.job_id)]
    return _job(row).model_copy(update={"steps": list(steps_of(events))})


async def get_events(command: GetJobEvents, context: Context, *, database: Pool) -> JobEvents:
    return JobEvents(events=[record["body"] for record in await database.fetch(SQL["all_events"], command.job_id)])


async def claim_job(command: ClaimJob, context: Context, *, database: Pool) -> JobClaimed:
    """One statement decides, so that two who come at once are told the same."""
    row = await database.fetchrow(SQL["claim_job"], command.job_id, command.kind, command.sha256, command.tenant)
    return JobClaimed.model_validate(dict(row.items()))


async def list_jobs(command: ListJobs, context: Context, *, database: Pool) -> Jobs:
    rows = await database.fetch(SQL["jobs"], command.state, command.tenant, command.before, command.limit, command.words)
    return Jobs(jobs=[_job(row) for row in rows])


def _job(row: Record) -> Job:
    return Job.model_validate(dict(row.items()))


def steps_of(events: Iterable[Event]) -> Iterable[StepRecord]:
    """The last word on each step, in the order in which the steps began."""
    last: dict[tuple[str, str], Event] = {}
    for event in events:
        last[event.step, event.message_id] = event
    for event in last.values():
        told = event.model_dump(exclude={"kind", "job_id", "message_id", "tenant"})
        yield StepRecord.model_validate(told | {"state": STATES[event.kind]})


@asynccontextmanager
async def open_ledger(tools: Tools) -> AsyncIterator[Handler]:
    _database(tools)
    yield keep


def answering(answer: Answer) -> Open:
    """How a question about the record is opened: with the database in its hand."""

    @asynccontextmanager
    async def opened(tools: Tools) -> AsyncIterator[Handler]:
        yield partial(answer, database=_database(tools))

    return opened


def _database(tools: Tools) -> Pool:
    if tools.database is None:
        raise PermanentError("database-missing", "the ledger keeps its record in Postgres: set DATABASE_URL")
    return tools.database


def question(step: str, command: type[Command], result: type[Result], answer: Answer, description: str) -> Actor:
    return Actor(
        step=step,
        command=command,
        result=result,
        open=answering(answer),
        timeout_seconds=10,
        prefetch=16,
        remembers=False,
        announces=False,
        question=True,
        description=description,
    )


ACTORS = (
    Actor(
        step="ledger",
        command=Event,
        result=Kept,
        open=open_ledger,
        timeout_seconds=30,
        prefetch=32,
        remembers=False,
        announces=False,
        exchange=channels.EVENTS,
        keys=("#",),
        schema=SQL["schema"],
        description="Keeps every event, and from them the state of each job.",
    ),
    question("job.get", GetJob, Job, get_job, "Answers with one job and its steps."),
    question("job.list", ListJobs, Jobs, list_jobs, "Answers with jobs, the youngest first."),
    question("job.events", GetJobEvents, JobEvents, get_events, "Answers with all that happened to one job."),
    question("job.claim", ClaimJob, JobClaimed, claim_job, "Takes an id for a request, or tells what the id means already."),
)
