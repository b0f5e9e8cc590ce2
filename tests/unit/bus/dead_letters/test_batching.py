"""The inserts of the ingest: many letters in one transaction, and an invalid letter that does not block the others."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from bus.dead_letters import ingest
from bus.dead_letters.ingest import DeadLetterConsumer
from bus.dead_letters.record import DeadLetterRecord
from bus.persistence import group_commit
from bus.persistence.group_commit import GroupCommit
from tests.support.dead_letter_records import make_record


class FakeRepository:
    """Refuses a batch that contains a record with the code `bad`."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.writes: list[list[str]] = []
        self.refusal = refusal or asyncpg.DataError("refused")

    async def insert(self, records: Sequence[DeadLetterRecord]) -> list[None]:
        await asyncio.sleep(0)
        if any(record.code == "bad" for record in records):
            raise self.refusal
        self.writes.append([record.message_id for record in records])
        return [None] * len(records)


def make_records(count: int) -> list[DeadLetterRecord]:
    return [make_record(message_id=f"m-{number}") for number in range(count)]


async def test_concurrent_dead_letters_are_written_in_one_batch() -> None:
    repository = FakeRepository()
    inserts = GroupCommit(repository.insert)
    await asyncio.gather(*map(inserts.submit, make_records(250)))
    assert sorted(name for write in repository.writes for name in write) == sorted(record.message_id for record in make_records(250))
    assert len(repository.writes) < 10


async def test_invalid_dead_letter_fails_alone() -> None:
    """The other records of its batch are written, each once."""
    repository = FakeRepository()
    inserts = GroupCommit(repository.insert)
    bad = replace(make_record(message_id="bad"), code="bad")
    results: list[Any] = await asyncio.gather(*map(inserts.submit, [*make_records(5), bad, *make_records(10)[5:]]), return_exceptions=True)
    assert [type(result) for result in results] == [*[type(None)] * 5, asyncpg.DataError, *[type(None)] * 5]
    assert sorted(name for write in repository.writes for name in write) == [f"m-{number}" for number in range(10)]


async def test_dead_letter_that_may_be_stored_later_is_written_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group it would fail its neighbours each time. Its error is logged without secrets."""
    monkeypatch.setattr(ingest, "WRITE_RETRY_SECONDS", 0.001)
    inserts = GroupCommit(FakeRepository(asyncpg.InsufficientPrivilegeError("postgres://atelier:hunter2hunter2@db refused")).insert)
    grouped: list[DeadLetterRecord] = []

    async def submit(record: DeadLetterRecord, size: int = 0) -> None:
        grouped.append(record)
        await GroupCommit.submit(inserts, record, size)

    monkeypatch.setattr(inserts, "submit", submit)
    bad = replace(make_record(message_id="bad"), code="bad")
    with capture_logs() as logs:
        refused = asyncio.create_task(DeadLetterConsumer(inserts)._write(bad))
        async with asyncio.timeout(5):
            while len(logs) < 4:
                await asyncio.sleep(0.001)
        refused.cancel()
    assert grouped == [bad]
    assert {(log["event"], log["error"]) for log in logs} == {("dead_letter.store_failed", "postgres://atelier:***@db refused")}


async def test_cancelled_write_does_not_cancel_batch() -> None:
    """When the caller that writes the batch is cancelled, another caller writes the records of the others."""
    repository = FakeRepository()
    inserts = GroupCommit(repository.insert)
    tasks = [asyncio.create_task(inserts.submit(record)) for record in make_records(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await asyncio.gather(*tasks[1:])
    assert {"m-1", "m-2"} <= {name for write in repository.writes for name in write}


async def test_large_dead_letters_are_written_in_several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as have a statement's bytes together; one that has more goes alone."""
    monkeypatch.setattr(group_commit, "MAX_SIZE", 10_000)
    repository = FakeRepository()
    inserts = GroupCommit(repository.insert)
    bodies = [b"x" * size for size in (4000, 4000, 4000, 20_000, 100, 100)]
    records = [make_record(message_id=f"m-{number}", body=body) for number, body in enumerate(bodies)]
    await asyncio.gather(*(inserts.submit(record, record.size) for record in records))
    assert repository.writes == [["m-0", "m-1"], ["m-2"], ["m-3"], ["m-4", "m-5"]]
