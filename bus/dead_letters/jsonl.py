"""Export and import of dead letters as JSON lines: each line is one whole dead letter with its history.

The body and the encoded properties are in base64.
"""

import base64
import json
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import Any

import asyncpg
from pydantic import BaseModel, Field, ValidationError

from bus.dead_letters.repository import SQL, selection_json
from bus.errors import PermanentError, validation_problems
from contracts.dead_letter import DeadLetterState, Selection

EXPORT_BATCH_SIZE = 20


class ExportedDeadLetter(BaseModel):
    """One line. The order of the fields is that of the query `import`."""

    id: str
    dead_queue: str
    target: str | None
    step: str
    message_id: str
    sent_as: str
    job_id: str
    tenant: str | None = None
    type: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    group_id: str
    code: str
    message: str
    exception_type: str | None = None
    stack: str = ""
    shape: list[str] = Field(default_factory=list)
    attempts: int
    origin_exchange: str | None = None
    origin_key: str | None = None
    headers: dict[str, Any]
    body: str
    state: DeadLetterState
    failures: int
    replays: int
    edited_from: str | None = None
    first_failed_at: datetime
    last_failed_at: datetime
    properties: str | None = None
    history: list[dict[str, Any]] = Field(default_factory=list)


async def export_lines(pool: asyncpg.Pool, selection: Selection) -> AsyncIterator[str]:
    """The selected letters as lines, the oldest failure first. At most EXPORT_BATCH_SIZE bodies are in memory at once."""
    ids = [row["id"] for row in await pool.fetch(SQL["export_ids"], selection_json(selection))]
    for start in range(0, len(ids), EXPORT_BATCH_SIZE):
        for row in await pool.fetch(SQL["export"], ids[start : start + EXPORT_BATCH_SIZE]):
            encoded = {name: row[name] and base64.b64encode(row[name]).decode() for name in ("body", "properties")}
            yield ExportedDeadLetter.model_validate(dict(row) | encoded | {"body": encoded["body"] or ""}).model_dump_json()


async def import_lines(pool: asyncpg.Pool, lines: Iterable[str], *, dry_run: bool) -> int:
    """Insert the letters of all lines, or none; returns how many did not exist before.

    Raises PermanentError("import-unreadable") with the number of the first invalid line.
    """
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            new = 0
            for number, line in enumerate(lines, 1):
                if line.strip():
                    new += await connection.fetchval(SQL["import"], *_import_arguments(_parse_line(line, number)))
        except BaseException:
            await transaction.rollback()
            raise
        await (transaction.rollback() if dry_run else transaction.commit())
    return new


def _parse_line(line: str, number: int) -> ExportedDeadLetter:
    try:
        letter = ExportedDeadLetter.model_validate_json(line)
        for name in ("body", "properties"):
            base64.b64decode(getattr(letter, name) or "", validate=True)
    except ValidationError as error:
        problem = validation_problems(error, limit=1, root="the line")
        raise PermanentError("import-unreadable", f"line {number}: {problem}; nothing was imported") from None
    except ValueError as error:
        raise PermanentError("import-unreadable", f"line {number}: {name}: {error}; nothing was imported") from None
    return letter


def _import_arguments(exported: ExportedDeadLetter) -> tuple[Any, ...]:
    """The fields in the order in which they are declared, which is that of the query `import`."""
    fields = exported.model_dump(exclude={"history"})
    fields["body"] = base64.b64decode(exported.body)
    fields["properties"] = exported.properties and base64.b64decode(exported.properties)
    return (*fields.values(), json.loads(exported.model_dump_json(include={"history"}))["history"])
