"""Dead letters: takes them out of their queues, hears which were resolved, and answers operators over the bus.

Questions: `dead-letter.list`, `.groups`, `.get`, `.replay`, `.edit` and `.move`. Reads and writes the tables `atelier.dead_letter*`.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from asyncpg import Connection, Pool

from actors.settings import DeadLetterSettings
from bus.actor import Actor, Context, Handler, Tools, Transactional
from bus.dead_letters import replay
from bus.dead_letters.cabinet import SCHEMA, Cabinet
from bus.dead_letters.intake import Intake
from bus.errors import PermanentError
from contracts import channels
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
from contracts.steps import BURYING
from contracts.wire import Command, Result


class Heard(Result):
    """The event is reckoned with."""


async def hear(event: Event, context: Context, *, database: Pool) -> Transactional:
    async def write(connection: Connection) -> None:
        await Cabinet(database).hear(event, connection)

    return Transactional(Heard(), write)


async def list_letters(command: ListDeadLetters, context: Context, *, database: Pool) -> DeadLetters:
    return await Cabinet(database).page(command.selection, command.limit, command.offset)


async def group_letters(command: GroupDeadLetters, context: Context, *, database: Pool) -> DeadLetterGroups:
    return DeadLetterGroups(groups=await Cabinet(database).groups(command.selection, by_tenant=command.by_tenant, per=command.per))


async def get_letter(command: GetDeadLetter, context: Context, *, database: Pool) -> WholeDeadLetter:
    return await Cabinet(database).get(command.id)


async def replay_letters(command: ReplayDeadLetters, context: Context, *, database: Pool) -> Replayed:
    return await replay.stage(database, command)


async def edit_letter(command: EditDeadLetter, context: Context, *, database: Pool) -> Edited:
    return await replay.edit(database, command)


async def move_letters(command: MoveDeadLetters, context: Context, *, database: Pool) -> Moved:
    letters = await Cabinet(database).move(command.selection, command.to, by=command.by, dry_run=command.dry_run)
    return Moved(dry_run=command.dry_run, to=command.to, letters=letters)


@asynccontextmanager
async def open_with_database(tools: Tools, handle: Any) -> AsyncIterator[Handler]:
    if tools.database is None:
        raise PermanentError("database-missing", "dead letters are kept in Postgres: set DATABASE_URL")
    yield partial(handle, database=tools.database)


def question(step: str, handle: Any, command: type[Command], result: type[Result], description: str) -> Actor:
    def opened(tools: Tools) -> AbstractAsyncContextManager[Handler]:
        return open_with_database(tools, handle)

    return Actor(
        step=step,
        command=command,
        result=result,
        open=opened,
        timeout_seconds=30,
        prefetch=4,
        remembers=False,
        announces=False,
        question=True,
        schema=SCHEMA,
        description=description,
    )


def open_hearing(tools: Tools) -> AbstractAsyncContextManager[Handler]:
    return open_with_database(tools, hear)


INTAKE = Intake(
    name="dead-letter-intake",
    queues=tuple(channels.dead_queue(step) for step in BURYING),
    foreign=DeadLetterSettings().foreign_queues,
)

ACTORS = (
    Actor(
        step="dead-letters",
        command=Event,
        result=Heard,
        open=open_hearing,
        timeout_seconds=30,
        prefetch=32,
        remembers=False,
        announces=False,
        exchange=channels.EVENTS,
        keys=("*.completed.#", "*.cancelled.#"),
        schema=SCHEMA,
        description="Hears of completed work, so that a dead letter which was sent again is resolved.",
    ),
    question("dead-letter.list", list_letters, ListDeadLetters, DeadLetters, "Answers with dead letters, the youngest failure first."),
    question("dead-letter.groups", group_letters, GroupDeadLetters, DeadLetterGroups, "Answers with dead letters grouped by cause."),
    question("dead-letter.get", get_letter, GetDeadLetter, WholeDeadLetter, "Answers with one dead letter, its cause and its history."),
    question("dead-letter.replay", replay_letters, ReplayDeadLetters, Replayed, "Sends dead letters again to the queue that failed."),
    question("dead-letter.edit", edit_letter, EditDeadLetter, Edited, "Sends another body in place of a dead letter's own."),
    question("dead-letter.move", move_letters, MoveDeadLetters, Moved, "Archives, restores or resolves dead letters."),
)
