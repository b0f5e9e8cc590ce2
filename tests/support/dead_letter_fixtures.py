"""Fixtures for tests of dead letters: a handler that fails, a worker with ingest, the repository."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from actors.dead_letters import ACTORS
from bus.actor import Actor, Context
from bus.dead_letters.ingest import DeadLetterIngest
from bus.dead_letters.repository import SCHEMA, DeadLetterRepository
from bus.errors import PermanentError
from bus.persistence.pool import apply_schemas, open_pool
from bus.settings import BusSettings
from bus.storage.settings import StoreSettings
from bus.worker.worker import Worker
from contracts import broker_names
from contracts.dead_letter import ReplayDeadLetters, Selection, WholeDeadLetter
from tests.support.broker_client import BrokerClient, Echo, Echoed, wait_until

COMPLETION_LISTENER = ACTORS[0]


@pytest.fixture
async def pool(bus_settings: BusSettings) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(bus_settings) as pool:
        await apply_schemas(pool, [SCHEMA])
        yield pool


@pytest.fixture
def repository(pool: asyncpg.Pool) -> DeadLetterRepository:
    return DeadLetterRepository(pool)


StartWorkerWithIngest = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def start_worker_with_ingest(bus_settings: BusSettings, store_folder: Path) -> StartWorkerWithIngest:
    """`async with start_worker_with_ingest(actor, …):` runs actors and ingests their dead letters, and those of `queues`."""

    def start(*actors: Actor, foreign: tuple[str, ...] = (), queues: tuple[str, ...] = ()) -> AbstractAsyncContextManager[None]:
        ingest = DeadLetterIngest(
            "ingest", (*(broker_names.dead_letter_queue(actor.step) for actor in actors if not actor.is_query), *queues), foreign
        )
        store = StoreSettings(store_url=store_folder.as_uri())
        return Worker((COMPLETION_LISTENER, *actors), (), bus_settings, store, (ingest,)).run()

    return start


class FlakyHandler:
    """Echoes the text, or fails while `failing`. Records attempts and completions by message id."""

    def __init__(self) -> None:
        self.failing = True
        self.completed: list[tuple[str, str]] = []
        self.attempts: list[tuple[str, int]] = []

    async def __call__(self, command: Echo, context: Context) -> Echoed:
        self.attempts.append((context.message_id, context.attempt))
        if self.failing:
            raise PermanentError("echo-broken", f"cannot say {command.text}")
        self.completed.append((context.message_id, command.text))
        return Echoed(text=command.text)


async def wait_for_dead_letters(repository: DeadLetterRepository, count: int = 1, **selection: Any) -> list[WholeDeadLetter]:
    """Wait until `count` letters match the selection; returns all that match."""
    assert selection.keys() <= Selection.model_fields.keys(), "a field that no selection has would select all"

    async def stored() -> bool:
        return (await repository.find(Selection(**selection), 500)).total >= count

    await wait_until(stored)
    return [await repository.get(letter.id) for letter in (await repository.find(Selection(**selection), 500)).letters]


def replay_of(actor: Actor, **options: Any) -> ReplayDeadLetters:
    return ReplayDeadLetters(selection=Selection(step=actor.step), dry_run=False, **options)


async def queue_size(broker_client: BrokerClient, queue: str) -> int:
    return int((await broker_client.channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0)
