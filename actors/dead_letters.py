"""Dead letters: moves them from their queues into Postgres, resolves those whose replay completed, and answers operators' queries.

Queries: `dead-letter.list`, `.groups`, `.get`, `.replay`, `.edit` and `.move`. Reads and writes the tables `atelier.dead_letter*`.
"""

from datetime import UTC
from functools import partial

from asyncpg import Pool

from actors.settings import DeadLetterSettings
from bus.actor import Actor, Context, GroupableWrite, Transactional, query_actor, with_database
from bus.dead_letters import replay
from bus.dead_letters.ingest import DeadLetterIngest
from bus.dead_letters.repository import SCHEMA, DeadLetterRepository, apply_events
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
from contracts.wire import Result

DATABASE_MISSING = "dead letters are kept in Postgres: set DATABASE_URL"


class CompletionRecorded(Result):
    """The event was applied to the dead letters of its job."""


async def record_completion(event: Event, context: Context, *, database: Pool) -> Transactional:
    """Raises PermanentError("invalid-message") for what Postgres refuses: in a group it would fail its neighbours."""
    try:
        event.at.astimezone(UTC)
    except OverflowError:
        raise PermanentError("invalid-message", "at: in UTC the year is not within 1 and 9999") from None
    return Transactional(CompletionRecorded(), GroupableWrite(apply_events, event))


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


def build_ingest() -> DeadLetterIngest:
    return DeadLetterIngest(
        name="dead-letter-intake",
        queues=tuple(broker_names.dead_letter_queue(step) for step in DEAD_LETTERING_STEPS),
        foreign_queues=DeadLetterSettings().foreign_queues,
    )


dead_letter_query = partial(query_actor, timeout_seconds=30, prefetch=4, schema=SCHEMA)
open_with_database = partial(with_database, missing=DATABASE_MISSING)

ACTORS = (
    Actor(
        step="dead-letters",
        command=Event,
        result=CompletionRecorded,
        open=open_with_database(record_completion),
        timeout_seconds=30,
        prefetch=32,
        deduplicate=False,
        emit_events=False,
        exchange=broker_names.EVENTS_EXCHANGE,
        routing_keys=("*.completed.#", "*.cancelled.#"),
        schema=SCHEMA,
        description="Listens to completed and cancelled steps, and resolves the dead letters whose replay led to them.",
    ),
    dead_letter_query(
        "dead-letter.list",
        ListDeadLetters,
        DeadLetters,
        open_with_database(list_dead_letters),
        "Returns dead letters, the latest failure first.",
    ),
    dead_letter_query(
        "dead-letter.groups",
        GroupDeadLetters,
        DeadLetterGroups,
        open_with_database(group_dead_letters),
        "Returns dead letters grouped by cause.",
    ),
    dead_letter_query(
        "dead-letter.get",
        GetDeadLetter,
        WholeDeadLetter,
        open_with_database(get_dead_letter),
        "Returns one dead letter with its cause and its history.",
    ),
    dead_letter_query(
        "dead-letter.replay",
        ReplayDeadLetters,
        Replayed,
        open_with_database(replay_dead_letters),
        "Publishes dead letters again to the queue whose actor failed.",
    ),
    dead_letter_query(
        "dead-letter.edit",
        EditDeadLetter,
        Edited,
        open_with_database(edit_dead_letter),
        "Publishes an edited body in place of a dead letter's own.",
    ),
    dead_letter_query(
        "dead-letter.move",
        MoveDeadLetters,
        Moved,
        open_with_database(move_dead_letters),
        "Archives, restores or resolves dead letters.",
    ),
)
