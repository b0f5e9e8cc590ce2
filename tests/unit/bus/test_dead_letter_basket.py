"""The basket of the intake: many letters in one write, and one bad letter that holds up no other."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import asyncpg
import pytest

from bus.dead_letters.buried import Buried
from bus.dead_letters.cabinet import Cabinet
from bus.dead_letters.intake import Basket
from tests.unit.bus.test_dead_letters import buried


class Shelf:
    """A cabinet that refuses letters whose code is `bad`."""

    def __init__(self) -> None:
        self.writes: list[list[str]] = []

    async def keep(self, letters: list[Buried]) -> None:
        await asyncio.sleep(0)
        if any(letter.code == "bad" for letter in letters):
            raise asyncpg.DataError("refused")
        self.writes.append([letter.message_id for letter in letters])


def letters(count: int) -> list[Buried]:
    return [buried(message_id=f"m-{number}") for number in range(count)]


async def test_letters_that_come_together_are_written_together() -> None:
    shelf = Shelf()
    basket = Basket(cast("Cabinet", shelf))
    await asyncio.gather(*map(basket.keep, letters(250)))
    assert sorted(name for write in shelf.writes for name in write) == sorted(letter.message_id for letter in letters(250))
    assert len(shelf.writes) < 10
    assert basket.waiting == []


async def test_a_bad_letter_is_refused_alone() -> None:
    """Its neighbours in the same handful are written, each once."""
    shelf = Shelf()
    basket = Basket(cast("Cabinet", shelf))
    bad = replace(buried(message_id="bad"), code="bad")
    fates: list[Any] = await asyncio.gather(*map(basket.keep, [*letters(5), bad, *letters(10)[5:]]), return_exceptions=True)
    assert [type(fate) for fate in fates] == [*[type(None)] * 5, asyncpg.DataError, *[type(None)] * 5]
    assert sorted(name for write in shelf.writes for name in write) == [f"m-{number}" for number in range(10)]
    assert basket.waiting == []


async def test_whoever_is_cancelled_takes_no_other_along() -> None:
    """A delivery that goes away while it writes for all leaves the others to be written by the next."""
    shelf = Shelf()
    basket = Basket(cast("Cabinet", shelf))
    tasks = [asyncio.create_task(basket.keep(letter)) for letter in letters(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await asyncio.gather(*tasks[1:])
    assert {"m-1", "m-2"} <= {name for write in shelf.writes for name in write}
