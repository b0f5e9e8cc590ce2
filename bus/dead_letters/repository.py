"""Dead letters in Postgres: insert, find, group, change state, purge. Reads and writes the tables `atelier.dead_letter*`."""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import asyncpg
from pydantic import TypeAdapter

from bus.dead_letters import lists
from bus.dead_letters.lists import count_statement, groups_statement, list_statement
from bus.dead_letters.record import DeadLetterRecord
from bus.dead_letters.typed_values import typed_values
from bus.errors import PermanentError
from bus.json_text import storable_text
from bus.persistence.distinct_items import columns_of, split_repeated
from bus.persistence.pool import encode_postgres_json, stateless_connection
from bus.sql import load_queries
from contracts.dead_letter import DeadLetter, DeadLetterGroup, DeadLetters, DeadLetterState, Selection, WholeDeadLetter
from contracts.event import Event, EventKind

SQL = load_queries(__file__, "repository.sql")
SCHEMA = f"{SQL['schema']}\n{lists.SCHEMA}"

ALLOWED_TRANSITIONS: Mapping[str, tuple[DeadLetterState, ...]] = {
    "archived": ("unresolved", "failed-again", "resolved"),
    "unresolved": ("archived",),
    "resolved": ("unresolved", "failed-again", "replay-requested"),
}
"""New state to the states from which an operator may change to it."""

PURGEABLE_STATES: tuple[DeadLetterState, ...] = ("archived", "resolved")

HISTORY_KINDS: Mapping[str, str] = {"archived": "archived", "unresolved": "restored", "resolved": "resolved"}
"""New state to the kind of its history entry."""

GROUPS = TypeAdapter(list[DeadLetterGroup])
MAX_BODY_PREVIEW_BYTES = 1 << 20


class DeadLetterRepository:
    """Every method raises asyncpg's errors while the database is unavailable."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def schema_exists(self) -> bool:
        """Whether the tables exist. Creating them again would take locks that block writers."""
        return bool(await self._pool.fetchval(SQL["exists"]))

    async def insert(self, records: Sequence[DeadLetterRecord]) -> list[None]:
        """Insert letters in one transaction. A failure that is stored already changes nothing.

        Returns a None for each, as `GroupCommit` asks for an answer.
        """
        statements = [columns_of(map(_insert_arguments, some)) for some in split_repeated(records, lambda record: record.id)]
        async with stateless_connection(self._pool) as connection, connection.transaction():
            await connection.executemany(SQL["insert"], statements)
        return [None] * len(records)

    async def find(self, selection: Selection, limit: int, offset: int = 0) -> DeadLetters:
        """One page, the latest failure first, and the total number of matches."""
        statement, values = list_statement(selection, limit, offset)
        rows = await self._pool.fetch(statement, *values)
        total = rows[0]["total"] if rows else await self.count(selection)
        return DeadLetters(letters=[DeadLetter.model_validate(_contract_fields(row, DeadLetter)) for row in rows], total=total)

    async def count(self, selection: Selection) -> int:
        statement, values = count_statement(selection)
        return int(await self._pool.fetchval(statement, *values))

    async def groups(self, selection: Selection, *, by_tenant: bool = False, per: str | None = None) -> list[DeadLetterGroup]:
        """Letters by cause, the largest group first. `per`: also by "hour" or "day". At most MAX_GROUPS, the newest or else the largest."""
        statement, values = groups_statement(selection, by_tenant=by_tenant, per=per)
        return GROUPS.validate_python([dict(row) for row in await self._pool.fetch(statement, *values)])

    async def get(self, letter_id: str) -> WholeDeadLetter:
        """Raises PermanentError("dead-letter-unknown")."""
        row = await self._pool.fetchrow(SQL["get"], letter_id)
        if row is None:
            raise unknown_dead_letter(letter_id)
        preview = _body_preview(row["body"], MAX_BODY_PREVIEW_BYTES)
        more = {"properties": typed_values(row["properties"])}
        return WholeDeadLetter.model_validate(_contract_fields(row, WholeDeadLetter) | preview | more)

    async def change_state(self, selection: Selection, new_state: str, *, by: str, dry_run: bool) -> int:
        """Archive, restore (to unresolved) or resolve letters; returns how many changed, or on a dry run would change.

        Raises PermanentError: selection-empty, selection-unknown.
        """
        require_explicit_selection(selection)
        states = list(ALLOWED_TRANSITIONS[new_state])
        if dry_run:
            return int(await self._pool.fetchval(SQL["count_changeable"], selection_json(selection), states))
        arguments = (selection_json(selection), states, new_state, HISTORY_KINDS[new_state], by)
        return int(await self._pool.fetchval(SQL["change_state"], *arguments))

    async def purge(self, selection: Selection, *, unchanged_since: datetime, dry_run: bool) -> int:
        """Delete archived and resolved letters whose last change is older; returns how many, or on a dry run how many it would be."""
        query = SQL["count_purgeable" if dry_run else "purge"]
        return int(await self._pool.fetchval(query, selection_json(selection), list(PURGEABLE_STATES), unchanged_since))

    async def apply_event(self, event: Event, connection: asyncpg.Connection) -> None:
        """A completed event resolves the letter of its message; a cancelled one archives it."""
        await apply_events(connection, [event])


async def apply_events(connection: asyncpg.Connection, events: Sequence[Event]) -> None:
    """Apply events in one round trip, those of one message and step in this order.

    Sorted, so that two processes which do this lock the dead letters in one order. A deadlock with another writer is raised.
    """
    rows = map(_event_arguments, sorted(events, key=lambda event: (event.message_id, event.step)))
    await connection.executemany(SQL["apply_event"], list(rows))


def _event_arguments(event: Event) -> tuple[Any, ...]:
    """In the order of the query `apply_event`."""
    state = "resolved" if event.kind is EventKind.COMPLETED else "archived"
    details = {"by": event.worker or "", "event": str(event.kind)}
    return storable_text(event.message_id), storable_text(event.step), state, event.at, details


def selection_json(selection: Selection) -> dict[str, Any]:
    """A selection as the SQL function `dead_letter_selected` reads it."""
    return selection.model_dump(mode="json", exclude_none=True)


def require_explicit_selection(selection: Selection) -> None:
    """A forgotten filter, or one whose name is unknown, selects nothing.

    Raises PermanentError: selection-unknown, and selection-empty when there is no filter and `everything` is not set.
    """
    if unknown := sorted(selection.model_extra or ()):
        raise PermanentError("selection-unknown", f"no field of a selection: {', '.join(unknown)[:200]}; nothing is selected")
    if not selection.has_filters and not selection.everything:
        raise PermanentError("selection-empty", "nothing is selected: give ids, a group or a filter, or `everything` for all letters")


def unknown_dead_letter(letter_id: str) -> PermanentError:
    return PermanentError("dead-letter-unknown", f"there is no dead letter {letter_id!r}; `atelier dead-letters list` shows them all")


def _body_preview(body: bytes, max_bytes: int) -> dict[str, Any]:
    """The body as text, or in base64 when it is not UTF-8, cut at `max_bytes`."""
    preview = body[:max_bytes]
    cut = len(preview) < len(body)
    try:
        return {"body": preview.decode(errors="ignore" if cut else "strict"), "body_base64": None, "body_cut": cut}
    except UnicodeDecodeError:
        return {"body": None, "body_base64": base64.b64encode(preview).decode(), "body_cut": cut}


def _contract_fields(row: asyncpg.Record, model: type[DeadLetter]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in model.model_fields and name != "body"}


def _insert_arguments(record: DeadLetterRecord) -> tuple[Any, ...]:
    """In the order of the query `insert`."""
    return (
        record.id,
        record.failure_id,
        record.message_id,
        record.dead_queue,
        record.target,
        record.step,
        record.job_id,
        record.tenant,
        record.type,
        record.content_type,
        record.content_encoding,
        record.code,
        record.message,
        record.exception_type,
        record.stack,
        encode_postgres_json(record.fingerprint),
        record.attempts,
        record.origin_exchange,
        record.origin_key,
        record.first_failed_at,
        record.last_failed_at,
        encode_postgres_json(record.headers),
        record.body,
        record.group_id,
        record.properties,
    )
