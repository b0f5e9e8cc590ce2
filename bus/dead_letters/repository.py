"""The cabinet: dead letters in Postgres, to be found, grouped and filed. Reads and writes the tables `atelier.dead_letter*`."""

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg

from bus.dead_letters.record import DeadLetterRecord
from bus.errors import PermanentError
from bus.sql import load_queries
from contracts.dead_letter import DeadLetter, DeadLetterGroup, DeadLetters, DeadLetterState, HistoryEntry, Selection, WholeDeadLetter
from contracts.event import Event, EventKind

SQL = load_queries(__file__, "repository.sql")
SCHEMA = SQL["schema"]

ALLOWED_TRANSITIONS: dict[str, tuple[DeadLetterState, ...]] = {
    "archived": ("unresolved", "failed-again", "resolved"),
    "unresolved": ("archived",),
    "resolved": ("unresolved", "failed-again", "replay-requested"),
}
"""From which states a letter may be filed as what."""

PURGEABLE_STATES: tuple[DeadLetterState, ...] = ("archived", "resolved")
"""What may be purged."""

HISTORY_KINDS = {"archived": "archived", "unresolved": "restored", "resolved": "resolved"}
"""How the history calls it."""

MAX_BODY_PREVIEW_BYTES = 1 << 20


class DeadLetterRepository:
    """Every call raises what asyncpg raises while the database is away."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def schema_exists(self) -> bool:
        """Whether the tables are there. Making them again would lock out whoever writes."""
        return bool(await self._pool.fetchval(SQL["exists"]))

    async def insert(self, records: Sequence[DeadLetterRecord]) -> None:
        """Write letters down in one transaction. A failure that is noted already changes nothing."""
        rows = [_insert_arguments(letter) for letter in sorted(records, key=lambda letter: letter.id)]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.executemany(SQL["keep"], rows)

    async def find(self, selection: Selection, limit: int, offset: int = 0) -> DeadLetters:
        rows = await self._pool.fetch(SQL["list"], selection_json(selection), limit, offset)
        total = rows[0]["total"] if rows else await self.count(selection)
        return DeadLetters(letters=[DeadLetter.model_validate(_contract_fields(row, DeadLetter)) for row in rows], total=total)

    async def count(self, selection: Selection) -> int:
        return int(await self._pool.fetchval(SQL["count"], selection_json(selection)))

    async def groups(self, selection: Selection, *, by_tenant: bool = False, per: str | None = None) -> list[DeadLetterGroup]:
        return [
            DeadLetterGroup.model_validate(dict(row))
            for row in await self._pool.fetch(SQL["groups"], selection_json(selection), by_tenant, per)
        ]

    async def get(self, letter_id: str) -> WholeDeadLetter:
        """Raises PermanentError("dead-letter-unknown")."""
        row = await self._pool.fetchrow(SQL["letter"], letter_id)
        if row is None:
            raise unknown_dead_letter(letter_id)
        history = [HistoryEntry.model_validate(dict(entry)) for entry in await self._pool.fetch(SQL["history"], letter_id)]
        shown = _body_preview(row["body"], MAX_BODY_PREVIEW_BYTES)
        return WholeDeadLetter.model_validate(_contract_fields(row, WholeDeadLetter) | shown | {"history": history})

    async def change_state(self, selection: Selection, new_state: str, *, by: str, dry_run: bool) -> int:
        """File letters as archived, unresolved (restored) or resolved; returns how many. On a dry run: how many it would be."""
        require_explicit_selection(selection)
        states = list(ALLOWED_TRANSITIONS[new_state])
        if dry_run:
            return int(await self._pool.fetchval(SQL["movable"], selection_json(selection), states))
        return int(await self._pool.fetchval(SQL["move"], selection_json(selection), states, new_state, HISTORY_KINDS[new_state], by))

    async def purge(self, selection: Selection, *, unchanged_since: datetime, dry_run: bool) -> int:
        """Delete archived and resolved letters that nothing has happened to since; returns how many."""
        query = SQL["purgeable" if dry_run else "purge"]
        return int(await self._pool.fetchval(query, selection_json(selection), list(PURGEABLE_STATES), unchanged_since))

    async def apply_event(self, event: Event, connection: asyncpg.Connection) -> None:
        """Completed work resolves its letter; cancelled work, which nobody wants any more, archives it."""
        state = "resolved" if event.kind is EventKind.COMPLETED else "archived"
        said = {"by": event.worker or "", "event": str(event.kind)}
        await connection.execute(SQL["hear"], event.message_id, event.step, state, event.at, said)


def selection_json(selection: Selection) -> dict[str, Any]:
    """A selection as the SQL reads it."""
    return selection.model_dump(mode="json", exclude_none=True)


def require_explicit_selection(selection: Selection) -> None:
    """Raises PermanentError("selection-empty") unless something is selected, or everything is by word."""
    if not selection.has_filters and not selection.everything:
        raise PermanentError(
            "selection-empty", "nothing is selected: name ids, a group or a filter; or say that all letters are meant (everything)"
        )


def unknown_dead_letter(letter_id: str) -> PermanentError:
    return PermanentError("dead-letter-unknown", f"no dead letter {letter_id!r} is kept; `atelier dead-letters list` names those that are")


def _body_preview(body: bytes, max_bytes: int) -> dict[str, Any]:
    """The body as text, or in base64 when it is no UTF-8, cut at `most` bytes."""
    part = body[:max_bytes]
    try:
        text = part.decode(errors="strict" if len(part) == len(body) else "ignore")
        return {"body": text, "body_base64": None, "body_cut": len(part) < len(body)}
    except UnicodeDecodeError:
        return {"body": None, "body_base64": base64.b64encode(part).decode(), "body_cut": len(part) < len(body)}


def _contract_fields(row: asyncpg.Record, model: type[DeadLetter]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in model.model_fields and name != "body"}


def _insert_arguments(record: DeadLetterRecord) -> tuple[Any, ...]:
    """In the order of the query `keep`."""
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
        list(record.fingerprint),
        record.attempts,
        record.origin_exchange,
        record.origin_key,
        record.first_failed_at,
        record.last_failed_at,
        record.headers,
        record.body,
        record.group_id,
    )
