"""The basket of the intake: many letters in one write, and one bad letter that holds up no other."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import asyncpg
import pytest

from bus.dead_letters.ingest import BatchWriter
from bus.dead_letters.record import DeadLetterRecord
from bus.dead_letters.repository import DeadLetterRepository
from tests.unit.bus.dead_letters.test_record import make_record


class FakeRepository:
    """A cabinet that refuses letters whose code is `bad`."""

    def __init__(self) -> None:
        self.writes: list[list[str]] = []

    async def insert(self, records: list[DeadLetterRecord]) -> None:
        await asyncio.sleep(0)
        if any(letter.code == "bad" for letter in records):
            raise asyncpg.DataError("refused")
        self.writes.append([letter.message_id for letter in records])


def dead_letters(count: int) -> list[DeadLetterRecord]:
    return [make_record(message_id=f"m-{number}") for number in range(count)]


async def test_concurrent_dead_letters_are_written_in_one_batch() -> None:
    shelf = FakeRepository()
    basket = BatchWriter(cast("DeadLetterRepository", shelf))
    await asyncio.gather(*map(basket.write, dead_letters(250)))
    assert sorted(name for write in shelf.writes for name in write) == sorted(letter.message_id for letter in dead_letters(250))
    assert len(shelf.writes) < 10
    assert basket.pending == []


async def test_invalid_dead_letter_fails_alone() -> None:
    """Its neighbours in the same handful are written, each once."""
    shelf = FakeRepository()
    basket = BatchWriter(cast("DeadLetterRepository", shelf))
    bad = replace(make_record(message_id="bad"), code="bad")
    fates: list[Any] = await asyncio.gather(*map(basket.write, [*dead_letters(5), bad, *dead_letters(10)[5:]]), return_exceptions=True)
    assert [type(fate) for fate in fates] == [*[type(None)] * 5, asyncpg.DataError, *[type(None)] * 5]
    assert sorted(name for write in shelf.writes for name in write) == [f"m-{number}" for number in range(10)]
    assert basket.pending == []


async def test_cancelled_write_does_not_cancel_batch() -> None:
    """A delivery that goes away while it writes for all leaves the others to be written by the next."""
    shelf = FakeRepository()
    basket = BatchWriter(cast("DeadLetterRepository", shelf))
    tasks = [asyncio.create_task(basket.write(letter)) for letter in dead_letters(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await asyncio.gather(*tasks[1:])
    assert {"m-1", "m-2"} <= {name for write in shelf.writes for name in write}
