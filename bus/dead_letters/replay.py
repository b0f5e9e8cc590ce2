"""Replay: stage dead letters to be sent again, validate an edited body against its contract, compare what is sent with what died.

A replay is first staged in Postgres and then published by a relay (`relay.py`), so that a crash at any point loses nothing.
"""

import asyncio
import json
import time
from collections import Counter
from typing import Any
from uuid import uuid4

import asyncpg
from pydantic import BaseModel, ValidationError

from bus.dead_letters.replay_message import replay_differences
from bus.dead_letters.repository import SQL, require_explicit_selection, selection_json, unknown_dead_letter
from bus.errors import PermanentError, validation_problems
from contracts import broker_names
from contracts.dead_letter import EditDeadLetter, Edited, ReplayDeadLetters, ReplayDifference, Replayed
from contracts.event import Event
from contracts.image_generation import FlatOrder, NestedOrder
from contracts.steps import COMMANDS, EVENT_STEPS, SINGLE_COMMANDS
from contracts.wire import message_type

MAX_IDS_RETURNED = 20
MAX_EDITED_BODY_BYTES = 1 << 20
REPLAYABLE_STATES = ("unresolved", "failed-again")
MAX_COMPARED = 10_000
"""Dead letters whose messages a dry run builds, to compare them with those that died."""
COMPARED_BATCH_SIZE = 20
COMPARE_SECONDS = 5.0
"""After which a dry run compares no more dead letters: those with thousands of headers take 15 ms each."""


async def stage(pool: asyncpg.Pool, request: ReplayDeadLetters) -> Replayed:
    """Mark the selected letters to be sent. Of concurrent requests each letter enters one replay only.

    Raises PermanentError: selection-empty, selection-unknown.
    """
    require_explicit_selection(request.selection)
    selection = selection_json(request.selection)
    if request.dry_run:
        rows = await pool.fetch(SQL["replayable"], selection)
        ids = [row["id"] for row in rows if not row["without_target"]]
        replayed = Replayed(dry_run=True, letters=len(ids), ids=ids[:MAX_IDS_RETURNED], without_target=len(rows) - len(ids))
        return await compare(pool, ids[:MAX_COMPARED], replayed, again=request.again)
    async with pool.acquire() as connection, connection.transaction():
        replay_id = await connection.fetchval(SQL["create_replay"], request.by, request.per_second)
        ids = [row["id"] for row in await connection.fetch(SQL["stage"], selection, replay_id, request.again, request.by)]
        remaining = await connection.fetch(SQL["replayable"], selection)
    without_target = sum(row["without_target"] for row in remaining)
    return Replayed(dry_run=False, letters=len(ids), replay_id=replay_id, ids=ids[:MAX_IDS_RETURNED], without_target=without_target)


async def compare(pool: asyncpg.Pool, ids: list[str], replayed: Replayed, *, again: bool) -> Replayed:
    """`replayed` with the targets of these dead letters, and what a replay changes in their messages. Ends after COMPARE_SECONDS."""
    targets: Counter[str] = Counter()
    examples: dict[tuple[str, str, str], ReplayDifference] = {}
    letters: Counter[tuple[str, str, str]] = Counter()
    ends = time.monotonic() + COMPARE_SECONDS
    for start in range(0, len(ids), COMPARED_BATCH_SIZE):
        if time.monotonic() > ends:
            break
        for row in await pool.fetch(SQL["replay_properties"], ids[start : start + COMPARED_BATCH_SIZE]):
            await asyncio.sleep(0)
            targets[row["target"]] += 1
            for one in replay_differences(dict(row) | ({"sent_as": "a new id"} if again else {})):
                key = (one.name, one.change, one.reason)
                examples.setdefault(key, one)
                letters[key] += 1
    differences = [one.model_copy(update={"letters": letters[key]}) for key, one in examples.items()]
    return replayed.model_copy(update={"targets": dict(targets), "differences": differences, "compared": targets.total()})


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
        message_id = str(uuid4())
        type_ = message_type(row["step"]) if row["step"] in (*COMMANDS, *SINGLE_COMMANDS) else row["type"]
        if request.dry_run:
            edited = {"sent_as": "a new id", "replays": row["replays"] + 1, "edited": True, "edited_type": type_}
            return Edited(dry_run=True, id=request.id, contract=contract, differences=replay_differences(dict(row) | edited))
        replay_id = await connection.fetchval(SQL["create_replay"], request.by, None)
        body = json.dumps(request.body, ensure_ascii=False).encode()
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
    return Event if step in EVENT_STEPS else COMMANDS.get(step) or SINGLE_COMMANDS.get(step)
