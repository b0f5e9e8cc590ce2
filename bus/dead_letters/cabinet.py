"""The cabinet: dead letters in Postgres, to be found, grouped and filed. Reads and writes the tables `atelier.dead_letter*`."""

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg

from bus.dead_letters.buried import Buried
from bus.errors import PermanentError
from bus.sql import load_queries
from contracts.dead_letter import DeadLetter, DeadLetterGroup, DeadLetters, DeadLetterState, Happening, Selection, WholeDeadLetter
from contracts.event import Event, EventKind

SQL = load_queries(__file__, "cabinet.sql")
SCHEMA = SQL["schema"]

MAY_MOVE: dict[str, tuple[DeadLetterState, ...]] = {
    "archived": ("unresolved", "failed-again", "resolved"),
    "unresolved": ("archived",),
    "resolved": ("unresolved", "failed-again", "replay-requested"),
}
"""From which states a letter may be filed as what."""

SETTLED: tuple[DeadLetterState, ...] = ("archived", "resolved")
"""What may be purged."""

MOVES = {"archived": "archived", "unresolved": "restored", "resolved": "resolved"}
"""How the history calls it."""

MOST_BODY_SHOWN = 1 << 20


class Cabinet:
    """Every call raises what asyncpg raises while the database is away."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def exists(self) -> bool:
        """Whether the tables are there. Making them again would lock out whoever writes."""
        return bool(await self._pool.fetchval(SQL["exists"]))

    async def keep(self, letters: Sequence[Buried]) -> None:
        """Write letters down in one transaction. A failure that is noted already changes nothing."""
        rows = [_row(letter) for letter in sorted(letters, key=lambda letter: letter.id)]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.executemany(SQL["keep"], rows)

    async def page(self, selection: Selection, limit: int, offset: int = 0) -> DeadLetters:
        rows = await self._pool.fetch(SQL["list"], asked(selection), limit, offset)
        total = rows[0]["total"] if rows else await self.count(selection)
        return DeadLetters(letters=[DeadLetter.model_validate(_known(row, DeadLetter)) for row in rows], total=total)

    async def count(self, selection: Selection) -> int:
        return int(await self._pool.fetchval(SQL["count"], asked(selection)))

    async def groups(self, selection: Selection, *, by_tenant: bool = False, per: str | None = None) -> list[DeadLetterGroup]:
        return [
            DeadLetterGroup.model_validate(dict(row)) for row in await self._pool.fetch(SQL["groups"], asked(selection), by_tenant, per)
        ]

    async def get(self, letter_id: str) -> WholeDeadLetter:
        """Raises PermanentError("dead-letter-unknown")."""
        row = await self._pool.fetchrow(SQL["letter"], letter_id)
        if row is None:
            raise unknown(letter_id)
        history = [Happening.model_validate(dict(entry)) for entry in await self._pool.fetch(SQL["history"], letter_id)]
        shown = _shown(row["body"], MOST_BODY_SHOWN)
        return WholeDeadLetter.model_validate(_known(row, WholeDeadLetter) | shown | {"history": history})

    async def move(self, selection: Selection, to: str, *, by: str, dry_run: bool) -> int:
        """File letters as archived, unresolved (restored) or resolved; returns how many. On a dry run: how many it would be."""
        refuse_everything_unsaid(selection)
        states = list(MAY_MOVE[to])
        if dry_run:
            return int(await self._pool.fetchval(SQL["movable"], asked(selection), states))
        return int(await self._pool.fetchval(SQL["move"], asked(selection), states, to, MOVES[to], by))

    async def purge(self, selection: Selection, *, unchanged_since: datetime, dry_run: bool) -> int:
        """Delete archived and resolved letters that nothing has happened to since; returns how many."""
        query = SQL["purgeable" if dry_run else "purge"]
        return int(await self._pool.fetchval(query, asked(selection), list(SETTLED), unchanged_since))

    async def hear(self, event: Event, connection: asyncpg.Connection) -> None:
        """Completed work resolves its letter; cancelled work, which nobody wants any more, archives it."""
        state = "resolved" if event.kind is EventKind.COMPLETED else "archived"
        said = {"by": event.worker or "", "event": str(event.kind)}
        await connection.execute(SQL["hear"], event.message_id, event.step, state, event.at, said)


def asked(selection: Selection) -> dict[str, Any]:
    """A selection as the SQL reads it."""
    return selection.model_dump(mode="json", exclude_none=True)


def refuse_everything_unsaid(selection: Selection) -> None:
    """Raises PermanentError("selection-empty") unless something is selected, or everything is by word."""
    if not selection.narrowed and not selection.everything:
        raise PermanentError(
            "selection-empty", "nothing is selected: name ids, a group or a filter; or say that all letters are meant (everything)"
        )


def unknown(letter_id: str) -> PermanentError:
    return PermanentError("dead-letter-unknown", f"no dead letter {letter_id!r} is kept; `atelier dead-letters list` names those that are")


def _shown(body: bytes, most: int) -> dict[str, Any]:
    """The body as text, or in base64 when it is no UTF-8, cut at `most` bytes."""
    part = body[:most]
    try:
        text = part.decode(errors="strict" if len(part) == len(body) else "ignore")
        return {"body": text, "body_base64": None, "body_cut": len(part) < len(body)}
    except UnicodeDecodeError:
        return {"body": None, "body_base64": base64.b64encode(part).decode(), "body_cut": len(part) < len(body)}


def _known(row: asyncpg.Record, model: type[DeadLetter]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in model.model_fields and name != "body"}


def _row(letter: Buried) -> tuple[Any, ...]:
    """In the order of the query `keep`."""
    return (
        letter.id,
        letter.failure_id,
        letter.message_id,
        letter.dead_queue,
        letter.target,
        letter.step,
        letter.job_id,
        letter.tenant,
        letter.type,
        letter.content_type,
        letter.content_encoding,
        letter.code,
        letter.message,
        letter.exception_type,
        letter.stack,
        list(letter.shape),
        letter.attempts,
        letter.origin_exchange,
        letter.origin_key,
        letter.first_failed_at,
        letter.last_failed_at,
        letter.headers,
        letter.body,
        letter.group_id,
    )
