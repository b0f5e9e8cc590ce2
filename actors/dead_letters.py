"""Dead letters: takes them out of their queues, hears which were resolved, and answers operators over the bus.

Questions: `dead-letter.list`, `.groups`, `.get`, `.replay`, `.edit` and `.move`. Reads and writes the tables `atelier.dead_letter*`.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Connection, Pool

from actors.settings import DeadLetterSettings
from bus.actor import Actor, Context, Handler, Resources, Transactional
from bus.dead_letters import replay
from bus.dead_letters.ingest import DeadLetterIngest
from bus.dead_letters.repository import SCHEMA, DeadLetterRepository
from bus.errors import PermanentError
from contracts import broker_names
from contracts.dead_letter import (
    DeadLetterGroups,
    DeadLetters,
    EditDeadLetter,
    Edited,
    GetDeadLetter,
    GroupDeadLetters,
    ListDeadLetters,
    Moved,
    MoveDeadLetters,
    ReplayDeadLetters,
    Replayed,
    WholeDeadLetter,
)
from contracts.event import Event
from contracts.steps import DEAD_LETTERING_STEPS
from contracts.wire import Command, Result


class CompletionRecorded(Result):
    """The event is reckoned with."""


async def record_completion(event: Event, context: Context, *, database: Pool) -> Transactional:
    async def write(connection: Connection) -> None:
        await DeadLetterRepository(database).apply_event(event, connection)

    return Transactional(CompletionRecorded(), write)


async def list_dead_letters(command: ListDeadLetters, context: Context, *, database: Pool) -> DeadLetters:
    return await DeadLetterRepository(database).find(command.selection, command.limit, command.offset)


async def group_dead_letters(command: GroupDeadLetters, context: Context, *, database: Pool) -> DeadLetterGroups:
    return DeadLetterGroups(
        groups=await DeadLetterRepository(database).groups(command.selection, by_tenant=command.by_tenant, per=command.per)
    )


async def get_dead_letter(command: GetDeadLetter, context: Context, *, database: Pool) -> WholeDeadLetter:
    return await DeadLetterRepository(database).get(command.id)


async def replay_dead_letters(command: ReplayDeadLetters, context: Context, *, database: Pool) -> Replayed:
    return await replay.stage(database, command)


async def edit_dead_letter(command: EditDeadLetter, context: Context, *, database: Pool) -> Edited:
    return await replay.edit(database, command)


async def move_dead_letters(command: MoveDeadLetters, context: Context, *, database: Pool) -> Moved:
    letters = await DeadLetterRepository(database).change_state(command.selection, command.to, by=command.by, dry_run=command.dry_run)
    return Moved(dry_run=command.dry_run, to=command.to, letters=letters)


@asynccontextmanager
async def open_with_database(resources: Resources, handler: Any) -> AsyncIterator[Handler]:
    if resources.database is None:
        raise PermanentError("database-missing", "dead letters are kept in Postgres: set DATABASE_URL")
    yield partial(handler, database=resources.database)


def query_actor(step: str, handler: Any, command: type[Command], result: type[Result], description: str) -> Actor:
    def opened(tools: Resources) -> AbstractAsyncContextManager[Handler]:
        return open_with_database(tools, handler)

    return Actor(
        step=step,
        command=command,
        result=result,
        open=opened,
        timeout_seconds=30,
        prefetch=4,
        deduplicate=False,
        emit_events=False,
        is_query=True,
        schema=SCHEMA,
        description=description,
    )


def open_completion_listener(resources: Resources) -> AbstractAsyncContextManager[Handler]:
    return open_with_database(resources, record_completion)


INGEST = DeadLetterIngest(
    name="dead-letter-intake",
    queues=tuple(broker_names.dead_letter_queue(step) for step in DEAD_LETTERING_STEPS),
    foreign_queues=DeadLetterSettings().foreign_queues,
)

ACTORS = (
    Actor(
        step="dead-letters",
        command=Event,
        result=CompletionRecorded,
        open=open_completion_listener,
        timeout_seconds=30,
        prefetch=32,
        deduplicate=False,
        emit_events=False,
        exchange=broker_names.EVENTS_EXCHANGE,
        routing_keys=("*.completed.#", "*.cancelled.#"),
        schema=SCHEMA,
        description="Hears of completed work, so that a dead letter which was sent again is resolved.",
    ),
    query_actor(
        "dead-letter.list", list_dead_letters, ListDeadLetters, DeadLetters, "Answers with dead letters, the youngest failure first."
    ),
    query_actor(
        "dead-letter.groups", group_dead_letters, GroupDeadLetters, DeadLetterGroups, "Answers with dead letters grouped by cause."
    ),
    query_actor(
        "dead-letter.get", get_dead_letter, GetDeadLetter, WholeDeadLetter, "Answers with one dead letter, its cause and its history."
    ),
    query_actor(
        "dead-letter.replay", replay_dead_letters, ReplayDeadLetters, Replayed, "Sends dead letters again to the queue that failed."
    ),
    query_actor("dead-letter.edit", edit_dead_letter, EditDeadLetter, Edited, "Sends another body in place of a dead letter's own."),
    query_actor("dead-letter.move", move_dead_letters, MoveDeadLetters, Moved, "Archives, restores or resolves dead letters."),
)
