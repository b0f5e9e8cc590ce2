"""Dead letters that arrive at the same time: inserted in few transactions, whatever they contain. Real broker and Postgres."""

import asyncio
import random
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import aio_pika
import asyncpg
import pytest

from bus.dead_letters.record import DeadLetterRecord
from bus.dead_letters.repository import DeadLetterRepository
from bus.persistence.group_commit import GroupCommit
from contracts import broker_names
from contracts.dead_letter import Selection
from tests.support.broker_client import BrokerClient, wait_until
from tests.support.dead_letter_fixtures import StartWorkerWithIngest
from tests.support.dead_letter_records import make_record

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def count(pool: asyncpg.Pool, records: list[DeadLetterRecord]) -> tuple[int, int]:
    """How many letters and how many failures are stored of these records."""
    ids = list({record.id for record in records})
    letters = await pool.fetchval("select count(*) from atelier.dead_letters where id = any($1)", ids)
    return letters, await pool.fetchval("select count(*) from atelier.dead_letter_history where letter_id = any($1)", ids)


async def test_group_with_duplicates_large_bodies_and_raw_records_is_stored_once(pool: asyncpg.Pool) -> None:
    """A letter that is delivered again in the same group changes nothing; a later failure of its message is one of the same letter."""
    message_id, queue = uuid4().hex, "atelier.dead.image"
    first, later = (make_record({"atelier-last-failed-at": at}, message_id=message_id) for at in ("2026-01-01", "2026-01-02"))
    large = [make_record(message_id=uuid4().hex, body=b"\xff" * 1_500_000) for _ in range(4)]
    raw = [DeadLetterRecord.raw(b"\x00\xff", queue, NOW, "undecodable") for _ in range(3)]
    records = [first, *large, later, *raw, first, later, *large]
    inserts = GroupCommit(DeadLetterRepository(pool).insert)
    await asyncio.gather(*(inserts.submit(record, record.size) for record in records))
    assert await count(pool, records) == (8, 9)
    assert await pool.fetchval("select failures from atelier.dead_letters where id = $1", first.id) == 2
    ids = [record.id for record in large]
    assert await pool.fetchval("select sum(octet_length(body)) from atelier.dead_letters where id = any($1)", ids) == 6_000_000


async def test_two_messages_of_one_dead_letter_in_a_group_are_both_stored(pool: asyncpg.Pool) -> None:
    """Replayed under a new id, its message fails while the first one is delivered again: Postgres refuses both in one statement."""
    original, replayed, other = (f"{name}-{uuid4().hex}" for name in ("original", "replayed", "other"))
    repository = DeadLetterRepository(pool)
    first = make_record(message_id=original)
    await repository.insert([first])
    await pool.execute("update atelier.dead_letters set sent_as = $2 where id = $1", first.id, replayed)
    records = [make_record({"atelier-last-failed-at": "2026-01-02"}, message_id=name) for name in (original, replayed, other)]
    with pytest.raises(asyncpg.CardinalityViolationError):
        await repository.insert(records)
    inserts = GroupCommit(repository.insert)
    await asyncio.gather(*(inserts.submit(record, record.size) for record in records))
    assert await count(pool, [first, *records]) == (2, 4)
    assert await pool.fetchval("select failures from atelier.dead_letters where id = $1", first.id) == 3


async def test_letters_of_several_queues_are_stored_and_acknowledged(
    start_worker_with_ingest: StartWorkerWithIngest, broker_client: BrokerClient, repository: DeadLetterRepository
) -> None:
    """However their acks fall together; headers that are no UTF-8 among them. What were not acknowledged would be in its queue again."""
    rng = random.Random(3)
    names = [f"several-{uuid4().hex[:8]}" for _ in range(3)]
    queues = [broker_names.dead_letter_queue(name) for name in names]
    async with start_worker_with_ingest(queues=tuple(queues)):
        for number in range(120):
            headers: dict[str, Any] = {"atelier-fault-code": bytearray(b"\xff") if number % 40 == 7 else "engine-crash"}
            message = aio_pika.Message(b"{}", message_id=f"{names[0]}-{number}", headers=headers)
            await broker_client.channel.default_exchange.publish(message, rng.choice(queues))

        async def are_stored() -> bool:
            return sum([(await repository.find(Selection(step=name), 1)).total for name in names]) == 120

        await wait_until(are_stored)
    for queue in queues:
        assert (await broker_client.channel.declare_queue(queue, passive=True)).declaration_result.message_count == 0
