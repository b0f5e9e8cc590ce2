"""Replay: ask for letters to be sent again (stage), check an edited body against its contract, write the letter that goes out.

A replay is staged in Postgres first and sent by a sender after that (`sender.py`), so that a crash at any step loses nothing.
"""

import json
from typing import Any
from uuid import uuid4

import asyncpg
from pydantic import BaseModel, ValidationError

from bus.amqp.messages import OutboundMessage
from bus.dead_letters.repository import SQL, require_explicit_selection, selection_json, unknown_dead_letter
from bus.errors import PermanentError
from contracts import broker_names
from contracts.dead_letter import EditDeadLetter, Edited, ReplayDeadLetters, Replayed
from contracts.event import Event
from contracts.image_generation import FlatOrder, NestedOrder
from contracts.steps import COMMANDS
from contracts.wire import Header, message_type

MAX_IDS_RETURNED = 20


MAX_EDITED_BODY_BYTES = 1 << 20


REPLAYABLE_STATES = ("unresolved", "failed-again")


async def stage(pool: asyncpg.Pool, request: ReplayDeadLetters) -> Replayed:
    """Mark what is selected as to be sent. Two who ask for the same letters share them out: none is sent for both."""
    require_explicit_selection(request.selection)
    selection = selection_json(request.selection)
    if request.dry_run:
        rows = await pool.fetch(SQL["replayable"], selection)
        ids = [row["id"] for row in rows if not row["without_target"]]
        return Replayed(dry_run=True, letters=len(ids), ids=ids[:MAX_IDS_RETURNED], without_target=len(rows) - len(ids))
    async with pool.acquire() as connection, connection.transaction():
        replay_id = await connection.fetchval(SQL["ask"], request.by, request.per_second)
        ids = [row["id"] for row in await connection.fetch(SQL["stage"], selection, replay_id, request.again, request.by)]
        left = await connection.fetch(SQL["replayable"], selection)
    without_target = sum(row["without_target"] for row in left)
    return Replayed(dry_run=False, letters=len(ids), replay_id=replay_id, ids=ids[:MAX_IDS_RETURNED], without_target=without_target)


async def edit(pool: asyncpg.Pool, request: EditDeadLetter) -> Edited:
    """Stage another body under a new id. Raises PermanentError: dead-letter-unknown, -settled, -without-target; invalid-message."""
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(SQL["lock"], request.id)
        if row is None:
            raise unknown_dead_letter(request.id)
        require_replayable(row)
        contract = validate_body(row["step"], request.body)
        if request.dry_run:
            return Edited(dry_run=True, id=request.id, contract=contract)
        message_id = str(uuid4())
        replay_id = await connection.fetchval(SQL["ask"], request.by, None)
        body = json.dumps(request.body, ensure_ascii=False).encode()
        kind = message_type(row["step"]) if row["step"] in COMMANDS else row["type"]
        await connection.execute(SQL["stage_edited"], request.id, replay_id, message_id, body, kind, request.by)
    return Edited(dry_run=False, id=request.id, message_id=message_id, replay_id=replay_id, contract=contract)


def require_replayable(row: asyncpg.Record) -> None:
    if row["state"] not in REPLAYABLE_STATES:
        raise PermanentError(
            "dead-letter-settled", f"letter {row['id']} is {row['state']}: somebody has dealt with it; look at its history"
        )
    if row["target"] is None:
        raise PermanentError(
            "dead-letter-without-target", f"nothing on letter {row['id']} tells which queue failed: publish its body by hand"
        )


def validate_body(step: str, body: dict[str, Any]) -> str | None:
    """The name of the contract that a body keeps; None where the queue is a stranger's. Raises PermanentError("invalid-message")."""
    model = contract_of(step, body)
    size = len(json.dumps(body, ensure_ascii=False).encode())
    if size > MAX_EDITED_BODY_BYTES:
        raise PermanentError("message-too-large", f"the body has {size} bytes, the limit is {MAX_EDITED_BODY_BYTES}")
    if model is None:
        return None
    try:
        model.model_validate(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)[:10]
        told = "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}" for problem in problems)
        raise PermanentError("invalid-message", f"the edited body breaks the contract {model.__name__}: {told}") from None
    return model.__name__


def contract_of(step: str, body: dict[str, Any]) -> type[BaseModel] | None:
    if step == broker_names.IMAGE_GENERATION_QUEUE:
        return FlatOrder if "data" not in body and "prompt_tags" in body else NestedOrder
    return Event if step == "ledger" else COMMANDS.get(step)


def build_replay_message(row: asyncpg.Record | dict[str, Any]) -> OutboundMessage:
    """What goes out: to the failing queue alone, through the default exchange; nobody awaits a reply any more."""
    headers = replay_headers(row["headers"]) | {Header.REPLAY.value: row["replays"]}
    origin = {
        Header.ORIGIN_QUEUE.value: row["target"],
        Header.ORIGIN_EXCHANGE.value: row["origin_exchange"],
        Header.ORIGIN_ROUTING_KEY.value: row["origin_key"],
    }
    if row["sent_as"] != row["message_id"]:
        headers[Header.CAUSATION.value] = row["message_id"]
    return OutboundMessage(
        exchange="",
        routing_key=row["target"],
        body=row["body"],
        message_id=row["sent_as"],
        job_id=row["job_id"],
        type=(row["edited_type"] or row["type"] or ""),
        headers=headers | {name: value for name, value in origin.items() if value is not None},
        mandatory=True,
        content_type=row["content_type"] or "application/json",
        content_encoding=None if row["edited"] else row["content_encoding"],
    )


FAILURE_HEADERS = frozenset({
    Header.ATTEMPT.value,
    Header.DEADLINE.value,
    Header.FIRST_FAILED_AT.value,
    Header.LAST_FAILED_AT.value,
    Header.FAULT_CODE.value,
    Header.FAULT_MESSAGE.value,
    Header.EXCEPTION_TYPE.value,
    Header.EXCEPTION_STACK.value,
    Header.REPLAY.value,
})  # fmt: skip
"""What belongs to the failed life. The deadline goes too: it has passed, and the operator wants the work."""


SENDER_SELECTED_HEADERS = frozenset({"cc", "bcc"})
"""The broker would route a copy to every key in these: a replay goes to the queue that failed alone."""


def replay_headers(headers: dict[str, Any]) -> dict[str, Any]:
    """What goes along on a replay: neither the broker's headers (their counts would bury it again) nor those of the failure."""
    return {name: value for name, value in headers.items() if not _is_dropped(name)}


def _is_dropped(name: str) -> bool:
    return name.startswith("x-") or name in FAILURE_HEADERS or name.lower() in SENDER_SELECTED_HEADERS
