"""Replay: stage letters to be sent again, validate an edited body against its contract, build the message to publish.

A replay is first staged in Postgres and then published by a relay (`relay.py`), so that a crash at any point loses nothing.
"""

import json
from typing import Any
from uuid import uuid4

import asyncpg
from pydantic import BaseModel, ValidationError

from bus.amqp.messages import OutboundMessage
from bus.dead_letters.repository import SQL, require_explicit_selection, selection_json, unknown_dead_letter
from bus.errors import PermanentError, validation_problems
from contracts import broker_names
from contracts.dead_letter import EditDeadLetter, Edited, ReplayDeadLetters, Replayed
from contracts.event import Event
from contracts.image_generation import FlatOrder, NestedOrder
from contracts.steps import COMMANDS, EVENT_STEPS
from contracts.wire import Header, message_type

MAX_IDS_RETURNED = 20
MAX_EDITED_BODY_BYTES = 1 << 20
REPLAYABLE_STATES = ("unresolved", "failed-again")
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
    Header.SIGNATURE.value,
})  # fmt: skip
"""Headers of the failed delivery. A replay drops the deadline too: it has passed, and the operator wants the work done."""
SENDER_SELECTED_HEADERS = frozenset({"cc", "bcc"})
"""RabbitMQ routes a copy to every key in these; a replay goes only to the queue in which the message failed."""


async def stage(pool: asyncpg.Pool, request: ReplayDeadLetters) -> Replayed:
    """Mark the selected letters to be sent. Of concurrent requests each letter enters one replay only.

    Raises PermanentError("selection-empty").
    """
    require_explicit_selection(request.selection)
    selection = selection_json(request.selection)
    if request.dry_run:
        rows = await pool.fetch(SQL["replayable"], selection)
        ids = [row["id"] for row in rows if not row["without_target"]]
        return Replayed(dry_run=True, letters=len(ids), ids=ids[:MAX_IDS_RETURNED], without_target=len(rows) - len(ids))
    async with pool.acquire() as connection, connection.transaction():
        replay_id = await connection.fetchval(SQL["create_replay"], request.by, request.per_second)
        ids = [row["id"] for row in await connection.fetch(SQL["stage"], selection, replay_id, request.again, request.by)]
        remaining = await connection.fetch(SQL["replayable"], selection)
    without_target = sum(row["without_target"] for row in remaining)
    return Replayed(dry_run=False, letters=len(ids), replay_id=replay_id, ids=ids[:MAX_IDS_RETURNED], without_target=without_target)


async def edit(pool: asyncpg.Pool, request: EditDeadLetter) -> Edited:
    """Stage another body under a new message id.

    Raises PermanentError: dead-letter-unknown, dead-letter-settled, dead-letter-without-target, message-too-large, invalid-message.
    """
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(SQL["get_for_update"], request.id)
        if row is None:
            raise unknown_dead_letter(request.id)
        require_replayable(row)
        contract = validate_body(row["step"], request.body)
        if request.dry_run:
            return Edited(dry_run=True, id=request.id, contract=contract)
        message_id = str(uuid4())
        replay_id = await connection.fetchval(SQL["create_replay"], request.by, None)
        body = json.dumps(request.body, ensure_ascii=False).encode()
        type_ = message_type(row["step"]) if row["step"] in COMMANDS else row["type"]
        await connection.execute(SQL["stage_edited"], request.id, replay_id, message_id, body, type_, request.by)
    return Edited(dry_run=False, id=request.id, message_id=message_id, replay_id=replay_id, contract=contract)


def require_replayable(row: asyncpg.Record) -> None:
    """Raises PermanentError: dead-letter-settled, dead-letter-without-target."""
    if row["state"] not in REPLAYABLE_STATES:
        raise PermanentError("dead-letter-settled", f"letter {row['id']} is {row['state']}: somebody has dealt with it; see its history")
    if row["target"] is None:
        raise PermanentError(
            "dead-letter-without-target", f"the queue in which letter {row['id']} failed is unknown: publish its body by hand"
        )


def validate_body(step: str, body: dict[str, Any]) -> str | None:
    """The name of the contract that `body` satisfies; None for a foreign queue.

    Raises PermanentError: message-too-large, invalid-message.
    """
    model = contract_of(step, body)
    size = len(json.dumps(body, ensure_ascii=False).encode())
    if size > MAX_EDITED_BODY_BYTES:
        raise PermanentError("message-too-large", f"the body has {size} bytes, the limit is {MAX_EDITED_BODY_BYTES}")
    if model is None:
        return None
    try:
        model.model_validate(body)
    except ValidationError as error:
        reasons = validation_problems(error)
        raise PermanentError("invalid-message", f"the edited body breaks the contract {model.__name__}: {reasons}") from None
    return model.__name__


def contract_of(step: str, body: dict[str, Any]) -> type[BaseModel] | None:
    """The model of a message of `step`; None for a foreign queue, whose contract is unknown."""
    if step == broker_names.IMAGE_GENERATION_QUEUE:
        return FlatOrder if "data" not in body and "prompt_tags" in body else NestedOrder
    return Event if step in EVENT_STEPS else COMMANDS.get(step)


def build_replay_message(row: asyncpg.Record | dict[str, Any]) -> OutboundMessage:
    """The message to publish: through the default exchange to the queue that failed, and without `reply_to`, whose caller is gone."""
    headers = replay_headers(row["headers"]) | {Header.REPLAY.value: row["replays"]}
    origin = {
        Header.ORIGIN_QUEUE.value: row["target"],
        Header.ORIGIN_EXCHANGE.value: row["origin_exchange"],
        Header.ORIGIN_ROUTING_KEY.value: row["origin_key"],
    }
    if row["sent_as"] != row["message_id"]:
        headers[Header.CAUSATION.value] = row["message_id"]
        headers.pop(Header.FORMER_ID.value, None)  # an edited message is a new one
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


def replay_headers(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers of a replay: without the broker's, whose counts would dead-letter it again, and without those of the failure."""
    return {name: value for name, value in headers.items() if not _is_dropped(name)}


def _is_dropped(name: str) -> bool:
    return name.startswith("x-") or name in FAILURE_HEADERS or name.lower() in SENDER_SELECTED_HEADERS
