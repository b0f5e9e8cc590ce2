"""A desk for the tests of dead letters: a craft that fails, the intake, the cabinet."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from actors.dead_letters import ACTORS
from bus.actor import Actor, Context
from bus.database import make_tables, open_database
from bus.dead_letters.cabinet import SCHEMA, Cabinet
from bus.dead_letters.intake import Intake
from bus.errors import PermanentError
from bus.serve import open_workshop
from bus.settings import BusSettings
from bus.store_settings import StoreSettings
from contracts import channels
from contracts.dead_letter import ReplayDeadLetters, Selection, WholeDeadLetter
from tests.integration.conftest import Customer, Echo, Echoed, soon

HEARING = ACTORS[0]


@pytest.fixture
async def pool(bus_settings: BusSettings) -> AsyncIterator[asyncpg.Pool]:
    async with open_database(bus_settings) as pool:
        await make_tables(pool, [SCHEMA])
        yield pool


@pytest.fixture
def cabinet(pool: asyncpg.Pool) -> Cabinet:
    return Cabinet(pool)


Desk = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def desk(bus_settings: BusSettings, store_folder: Path) -> Desk:
    """`async with desk(actor, …):` serves actors, and beside them the intake of their dead letters."""

    def opened(*actors: Actor, foreign: tuple[str, ...] = (), queues: tuple[str, ...] = ()) -> AbstractAsyncContextManager[None]:
        intake = Intake("intake", (*(channels.dead_queue(actor.step) for actor in actors if not actor.question), *queues), foreign)
        store = StoreSettings(store_url=store_folder.as_uri())
        return open_workshop((HEARING, *actors), (), bus_settings, store, (intake,))

    return opened


class Craft:
    """An echo that fails until it is repaired, and notes what it did."""

    def __init__(self) -> None:
        self.broken = True
        self.done: list[tuple[str, str]] = []
        self.tries: list[tuple[str, int]] = []

    async def __call__(self, command: Echo, context: Context) -> Echoed:
        self.tries.append((context.message_id, context.attempt))
        if self.broken:
            raise PermanentError("echo-broken", f"cannot say {command.text}")
        self.done.append((context.message_id, command.text))
        return Echoed(text=command.text)


async def kept(cabinet: Cabinet, count: int = 1, **selection: Any) -> list[WholeDeadLetter]:
    """The letters that match, as soon as there are so many."""

    async def there() -> bool:
        return (await cabinet.page(Selection(**selection), 500)).total >= count

    await soon(there)
    return [await cabinet.get(letter.id) for letter in (await cabinet.page(Selection(**selection), 500)).letters]


def everything_of(actor: Actor, **more: Any) -> ReplayDeadLetters:
    return ReplayDeadLetters(selection=Selection(step=actor.step), dry_run=False, **more)


async def size_of(customer: Customer, queue: str) -> int:
    return int((await customer.channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0)
