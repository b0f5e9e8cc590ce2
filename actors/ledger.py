"""The ledger: listens to all events, stores jobs and their steps in Postgres, and answers queries about them.

It needs no inbox: an event that is delivered twice changes nothing the second time. A job belongs to the tenant of its claim, else of its
first event; an event of another tenant is not stored. A job that has ended keeps its end, except that a replay may complete it. Ended jobs
are deleted after LEDGER_RETENTION_DAYS.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, Self

import structlog
from asyncpg import Connection, Pool, Record

from actors.settings import LedgerSettings
from bus.actor import Actor, Context, GroupableWrite, Handler, Resources, Transactional, query_actor, with_database
from bus.errors import PermanentError
from bus.json_text import storable_text
from bus.masking import mask_error
from bus.persistence.distinct_items import columns_of, split_repeated
from bus.persistence.pool import encode_postgres_json
from bus.persistence.purge import PURGE_INTERVAL_SECONDS, purge_periodically
from bus.persistence.session_locks import SessionLocks
from bus.sql import load_queries
from contracts import broker_names
from contracts.event import Event, EventKind
from contracts.identifiers import MAX_ID_BYTES
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
HAS_PICTURES = "result ?| array['files', 'images']"
HAS_WORDS = "(position(lower({0}::text) in lower(words)) > 0 or position({0} in job_id) > 0)"
INDEXED_TRIPLES = (
    "atelier.byte_triples(lower(coalesce(words, '')) || ' ' || job_id, 0) operator(pg_catalog.@>) atelier.byte_triples({}, {})"
)
SHORTEST_INDEXED = 4
"""Bytes: with fewer there is no triple from the second byte on."""
MOST_NEWEST, MOST_INDEXED = 1000, 2000
"""So many jobs a search compares with the words, of the newest, and of those that the index finds, before it reads all."""
SEARCH_FILL_BATCH_SIZE = 1000
SEARCH_LOCK_ID = 4_273_003
"""Advisory lock: one ledger at a time creates the index of the search."""
SEARCH_INDEX_SECONDS = 7200.0
"""The longest time that the index of the search may take to be created, beside the writers."""
SEARCH_INDEX_RETRY_SECONDS = 60.0
INDEXING_STOP_SECONDS = 5.0
PURGE_BATCH_SIZE = 1000
PREFETCH = 256
"""Events in flight: those that wait while a statement is under way are written by the next one."""

log = structlog.get_logger()


class EventRecorded(Result):
    """The event is in the ledger, or is none of the job's tenant."""


class EventRow(NamedTuple):
    """An event in the order of the arguments of `record_events`. `body`: its JSON."""

    job_id: str
    state: JobState
    tenant: str | None
    at: datetime
    words: str | None
    ended_by: str | None
    step: str
    kind: str
    message_id: str
    percent: int
    body: str

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """An event of the whole job sets its state; one of a step means that the job is running. The texts are such as Postgres stores."""
        is_job_event = event.step == "job"
        accepted = is_job_event and event.kind is EventKind.ACCEPTED
        message_id = storable_text(event.message_id)
        return cls(
            storable_text(event.job_id),
            STATE_BY_EVENT_KIND[event.kind] if is_job_event else "running",
            None if event.tenant is None else storable_text(event.tenant),
            event.at,
            search_text((event.result or {}).get("order")) if accepted else None,
            f"{event.kind}/{message_id}" if is_job_event and event.kind in TERMINAL_EVENT_KINDS else None,
            storable_text(event.step),
            event.kind,
            message_id,
            event.progress.progress_percent if event.progress else 0,
            encode_postgres_json(event.model_dump(mode="json", exclude_none=True)),
        )


async def record_event(event: Event, context: Context) -> Transactional:
    """Raises PermanentError("id-refused" or "invalid-message") for what Postgres refuses: in a group it would fail its neighbours."""
    if any(len(text.encode(errors="replace")) > MAX_ID_BYTES for text in (event.job_id, event.step, event.message_id, event.tenant or "")):
        raise PermanentError("id-refused", f"job_id, step, message_id and tenant of an event have at most {MAX_ID_BYTES} bytes")
    try:
        event.at.astimezone(UTC)
    except OverflowError:
        raise PermanentError("invalid-message", "at: in UTC the year is not within 1 and 9999") from None
    row = EventRow.from_event(event)
    return Transactional(EventRecorded(), GroupableWrite(store_events, row, size=len(row.body)))


async def store_events(connection: Connection, rows: Sequence[EventRow]) -> None:
    """Store events in one round trip. Those of one job are written one after another, in this order."""
    columns = [columns_of(group) for group in split_repeated(rows, lambda row: row.job_id)]
    for foreign in await connection.fetchmany(SQL["record_events"], columns):
        log.warning("ledger.event_foreign", **dict(foreign))


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
    steps = list(latest_steps(map(Event.model_validate, row["events"])))
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
    filters = {"state = {}": command.state, "tenant = {}": context.resolve_tenant(command.tenant), "created_at < {}": command.before}
    values = {condition: value for condition, value in filters.items() if value is not None}
    terms = [condition.format(f"${number}") for number, condition in enumerate(values, 2)] + [HAS_PICTURES] * command.pictures
    conditions, arguments = " and ".join(terms) or "true", [command.limit, *values.values()]
    if command.words is None:
        rows = await database.fetch(SQL["jobs"].format(columns=SQL["columns"], conditions=conditions), *arguments)
    else:
        search = Search(command.words, conditions, [*arguments, command.words], of_tenant="tenant = {}" in values)
        rows = await search.find(database)
    return Jobs(jobs=[_to_job(row) for row in rows])


@dataclass(frozen=True)
class Search:
    """Jobs in which words stand. The words are the last of the arguments, the number of jobs that are wanted is the first."""

    words: str
    conditions: str
    arguments: Sequence[Any]
    of_tenant: bool

    async def find(self, database: Pool) -> list[Record]:
        """Of the newest jobs, if they fill the page or are all; else by the index, if it finds few; else by reading all jobs.

        A tenant's jobs are read by the index of tenants: neither what a search costs nor how long it takes depends on other tenants.
        """
        rows, candidates = await self._find_among("jobs_of_newest", database, most=MOST_NEWEST)
        if len(rows) == self.arguments[0] or candidates < MOST_NEWEST:
            return rows
        triples = "" if self.of_tenant else has_triples(self.words, self._parameter)
        if triples and await database.fetchval(SQL["search_is_indexed"]):
            rows, candidates = await self._find_among("jobs_of_indexed", database, most=MOST_INDEXED, triples=triples)
            if candidates <= MOST_INDEXED:
                return rows
        conditions = f"{self.conditions} and {self._has_words}"
        return list(await database.fetch(SQL["jobs"].format(columns=SQL["columns"], conditions=conditions), *self.arguments))

    async def _find_among(self, statement: str, database: Pool, **parts: str | int) -> tuple[list[Record], int]:
        """The jobs that match, and how many were read, or 0 if they were enough."""
        query = SQL[statement].format(columns=SQL["columns"], conditions=self.conditions, words=self._has_words, **parts)
        rows = await database.fetch(query, *self.arguments)
        return [row for row in rows if row["job_id"] is not None], rows[0]["candidates"]

    @property
    def _parameter(self) -> str:
        return f"${len(self.arguments)}"

    @property
    def _has_words(self) -> str:
        return HAS_WORDS.format(self._parameter)


def has_triples(words: str, parameter: str) -> str:
    """The condition that the index answers, which every match fulfils; empty for words that are too short for it.

    Words begin at the first or at the second byte of a triple. The lower case of a database may be that of ASCII alone.
    """
    if min(len(text.encode(errors="replace")) for text in (words, words.lower())) < SHORTEST_INDEXED:
        return ""
    texts = [f"lower({parameter})"] if words.isascii() and words == words.lower() else [f"lower({parameter})", parameter]
    return " or ".join(INDEXED_TRIPLES.format(text, first) for text in texts for first in (0, 1))


def _to_job(row: Record) -> Job:
    return Job.model_validate({name: value for name, value in row.items() if name not in ("events", "candidates")})


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
    """In the background, inside the block: deletes old jobs, and makes those of an earlier release searchable."""
    database, days = resources.require_database(DATABASE_MISSING), LedgerSettings().retention_days
    indexing = asyncio.create_task(index_search(database, resources.require_locks(DATABASE_MISSING)))
    try:
        async with purge_periodically("jobs", partial(purge_jobs, database, days), PURGE_INTERVAL_SECONDS) if days else nullcontext():
            yield record_event
    finally:
        indexing.cancel()
        await asyncio.wait({indexing}, timeout=INDEXING_STOP_SECONDS)


async def index_search(database: Pool, locks: SessionLocks) -> None:
    """Create the index of the search where the jobs were too many for the start of a process. Until then a search reads all jobs."""
    while True:
        try:
            if await database.fetchval(SQL["search_is_indexed"]) and not await database.fetchval(SQL["has_former_search_index"]):
                return
            await fill_search(database, locks)
            if await database.fetchval(SQL["search_is_indexed"]):
                return
            problem = "the index is not valid"
        except Exception as error:
            problem = mask_error(error)
        log.warning("ledger.search_not_indexed", error=problem, next_in_seconds=SEARCH_INDEX_RETRY_SECONDS)
        await asyncio.sleep(SEARCH_INDEX_RETRY_SECONDS)


async def fill_search(database: Pool, locks: SessionLocks) -> None:
    """Index the jobs that are stored already, in batches, beside the writers. One process does it; the others wait, and find it done.

    Two that create the index at once wait for each other's snapshots. What a process left that ended halfway is created again.
    """
    async with locks.hold(SQL["lock_search"], SQL["unlock_search"], SEARCH_LOCK_ID) as require_held:
        if not await database.fetchval(SQL["search_is_indexed"]):
            await database.execute(SQL["drop_search_index"], timeout=SEARCH_INDEX_SECONDS)
            last: str | None = ""
            while last is not None:
                require_held()
                last = await database.fetchval(SQL["fill_search"], last, SEARCH_FILL_BATCH_SIZE)
            await database.execute(SQL["create_search_index"], timeout=SEARCH_INDEX_SECONDS)
        await database.execute(SQL["drop_former_search_index"], timeout=SEARCH_INDEX_SECONDS)


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
        prefetch=PREFETCH,
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
