"""What a query answers is one state of the database, whatever is committed while it reads. Real Postgres."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import asyncpg
import pytest

from actors import ledger
from actors.conversations import list_conversations
from actors.llm import conversation_repository
from actors.llm.conversation_repository import ConversationRepository
from bus.actor import Context, Transactional
from bus.dead_letters import repository
from bus.dead_letters.repository import DeadLetterRepository
from bus.persistence.pool import apply_schemas, open_pool
from bus.persistence.session_locks import SessionLocks
from bus.settings import BusSettings
from contracts.conversation import ListConversations
from contracts.event import Event, EventKind
from contracts.fault import Fault
from contracts.job import GetJob
from tests.support.dead_letter_records import make_record
from tests.support.interleaved_pool import InterleavedPool

START = datetime(2026, 1, 1, tzinfo=UTC)
FAULT = Fault(code="lora-missing", message="x", step="image")


@pytest.fixture
async def pool(bus_settings: BusSettings) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(bus_settings) as pool:
        assert pool is not None
        await apply_schemas(pool, [ledger.SQL["schema"], repository.SCHEMA, conversation_repository.SCHEMA])
        yield pool


@pytest.fixture
def job_id() -> str:
    return f"job-{uuid4().hex}"


def context_of(tenant: str | None = None) -> Context:
    return Context("j", "m", 1, tenant, None, cast("Any", None))


def interleaved(pool: asyncpg.Pool, write: Callable[[], Awaitable[Any]]) -> asyncpg.Pool:
    return cast("asyncpg.Pool", InterleavedPool(pool, write))


async def record(pool: asyncpg.Pool, *events: Event) -> None:
    for event in events:
        transactional = await ledger.record_event(event, context_of())
        assert isinstance(transactional, Transactional)
        async with pool.acquire() as connection, connection.transaction():
            await transactional.write(connection)


def event(job_id: str, step: str, kind: EventKind, seconds: float, **fields: Any) -> Event:
    return Event(kind=kind, step=step, job_id=job_id, at=START + timedelta(seconds=seconds), message_id=f"{job_id}/{step}", **fields)


async def test_job_that_completes_while_it_is_read_is_not_failed_beside_completed_steps(pool: asyncpg.Pool, job_id: str) -> None:
    """As after a replay. The query answers the state before it or the one after it."""
    await record(pool, event(job_id, "image", EventKind.FAILED, 1, fault=FAULT), event(job_id, "job", EventKind.FAILED, 1, fault=FAULT))
    replayed = (event(job_id, "image", EventKind.COMPLETED, 2), event(job_id, "job", EventKind.COMPLETED, 3))
    during = await ledger.get_job(GetJob(job_id=job_id), context_of(), database=interleaved(pool, lambda: record(pool, *replayed)))
    after = await ledger.get_job(GetJob(job_id=job_id), context_of(), database=pool)
    assert (during.state, [step.state for step in during.steps]) == ("failed", ["failed"])
    assert (after.state, [step.state for step in after.steps], after.step) == ("completed", ["completed"], "image")


async def test_letter_that_is_resolved_while_it_is_read_is_not_unresolved_beside_its_resolution(pool: asyncpg.Pool) -> None:
    message_id = f"m-{uuid4().hex}"
    letter = make_record(message_id=message_id)
    await DeadLetterRepository(pool).insert([letter])

    async def resolve() -> None:
        done = Event(kind=EventKind.COMPLETED, step="image", job_id="j-1", at=datetime.now(UTC) + timedelta(days=1), message_id=message_id)
        async with pool.acquire() as connection:
            await DeadLetterRepository(pool).apply_event(done, connection)

    during = await DeadLetterRepository(interleaved(pool, resolve)).get(letter.id)
    after = await DeadLetterRepository(pool).get(letter.id)
    assert (during.state, [entry.kind for entry in during.history]) == ("unresolved", ["failed"])
    assert (after.state, [entry.kind for entry in after.history]) == ("resolved", ["failed", "resolved"])
    assert after.history[0].at == letter.last_failed_at


async def test_conversation_that_begins_while_the_list_is_read_is_not_counted_without_being_listed(pool: asyncpg.Pool) -> None:
    tenant = f"tenant-{uuid4().hex}"

    async def begin() -> None:
        conversation_id = uuid4().hex
        await pool.execute("insert into atelier.conversations (conversation_id, tenant, turns) values ($1, $2, 1)", conversation_id, tenant)
        await pool.execute("insert into atelier.conversation_messages values ($1, 1, 'user', '?', now())", conversation_id)

    await begin()
    conversations = ConversationRepository(interleaved(pool, begin), cast("SessionLocks", None))
    during = await list_conversations(ListConversations(), context_of(tenant), repository=conversations)
    after = await list_conversations(ListConversations(), context_of(tenant), repository=ConversationRepository(pool, conversations.locks))
    assert [(len(page.conversations), page.total_conversations) for page in (during, after)] == [(1, 1), (2, 2)]
