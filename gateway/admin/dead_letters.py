"""Dead letters over HTTP: list, group, replay, edit, archive. The dead-letters worker replies over the bus."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import ConfigDict, Field, field_validator

from contracts.dead_letter import (
    DeadLetterGroups,
    DeadLetters,
    DeadLetterState,
    Edited,
    FilterText,
    Moved,
    Replayed,
    Selection,
    WholeDeadLetter,
)
from gateway.callers import caller_of, require_operator
from gateway.jobs.routes import TimestampQuery
from gateway.json_body import JsonRoute
from gateway.problems import problem_responses
from gateway.services import services_of
from gateway.strict_model import HttpModel

router = APIRouter(prefix="/dead-letters", tags=["dead letters"], dependencies=[Depends(require_operator)], route_class=JsonRoute)

QUERY_STEPS = tuple(f"dead-letter.{operation}" for operation in ("list", "groups", "get", "replay", "edit", "move"))

DeadLetterId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,255}$", examples=["5d1c0c9c0f3b8a21"])]
TextQuery = Annotated[FilterText | None, Query()]


class StrictSelection(Selection):
    """Which letters: those that match all given fields. Without a field, `everything` must be set."""

    model_config = ConfigDict(extra="forbid")


class DryRunRequest(HttpModel):
    """By default, nothing is changed."""

    model_config = ConfigDict(extra="forbid")
    dry_run: bool = True


class Replay(DryRunRequest):
    selection: StrictSelection
    again: bool = Field(False, description="Under a new message id, so that the inbox does not recognise a message that was processed.")
    per_second: float | None = Field(None, gt=0, le=100_000, description="At most so many messages per second.")


class Edit(DryRunRequest):
    body: dict[str, Any]

    @field_validator("body")
    @classmethod
    def check_plain_json(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Reject what only Python accepts as JSON: NaN and lone surrogates."""
        try:
            json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is not standard JSON: {error}") from None
        return body


class Move(DryRunRequest):
    selection: StrictSelection
    to: Literal["archived", "unresolved", "resolved"]


async def _query(request: Request, step: str, **fields: Any) -> dict[str, Any]:
    return await services_of(request).commands.query(step, fields)


async def _command(request: Request, step: str, body: DryRunRequest, **extra_fields: Any) -> dict[str, Any]:
    """Request a change in the caller's name."""
    caller = caller_of(request) or "http"
    return await _query(request, step, **body.model_dump(mode="json", exclude_none=True), **extra_fields, by=caller[:255])


def selection_query(
    group: TextQuery = None,
    step: TextQuery = None,
    code: TextQuery = None,
    exception_type: TextQuery = None,
    tenant: TextQuery = None,
    state: DeadLetterState | None = None,
    job_id: TextQuery = None,
    message_id: TextQuery = None,
    since: TimestampQuery = None,
    before: TimestampQuery = None,
) -> dict[str, Any]:
    selection = Selection(
        group=group,
        step=step,
        code=code,
        exception_type=exception_type,
        tenant=tenant,
        state=state,
        job_id=job_id,
        message_id=message_id,
        since=since,
        before=before,
    )
    return selection.model_dump(mode="json", exclude_none=True)


SelectionQuery = Annotated[dict[str, Any], Depends(selection_query)]


@router.get("", responses=problem_responses())
async def list_letters(
    request: Request,
    selection: SelectionQuery,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> DeadLetters:
    """Dead letters, the most recent failure first."""
    return DeadLetters.model_validate(await _query(request, "dead-letter.list", selection=selection, limit=limit, offset=offset))


@router.get("/groups", responses=problem_responses())
async def group_letters(
    request: Request, selection: SelectionQuery, by_tenant: bool = False, per: Literal["hour", "day"] | None = None
) -> DeadLetterGroups:
    """Dead letters by cause, the largest group first."""
    return DeadLetterGroups.model_validate(await _query(request, "dead-letter.groups", selection=selection, by_tenant=by_tenant, per=per))


@router.post("/replay", responses=problem_responses())
async def replay_letters(request: Request, order: Replay) -> Replayed:
    """Publish letters again, each to its own step's queue only. With `dry_run` (the default), only report what would be published."""
    return Replayed.model_validate(await _command(request, "dead-letter.replay", order))


@router.post("/move", responses=problem_responses())
async def move_letters(request: Request, order: Move) -> Moved:
    """Archive letters, restore them (to `unresolved`), or mark them as resolved."""
    return Moved.model_validate(await _command(request, "dead-letter.move", order))


@router.get("/{letter_id}", responses=problem_responses(404))
async def get_letter(request: Request, letter_id: DeadLetterId) -> WholeDeadLetter:
    """One letter: its body, headers, cause and history."""
    return WholeDeadLetter.model_validate(await _query(request, "dead-letter.get", id=letter_id))


@router.post("/{letter_id}/edit", responses=problem_responses(404, 409))
async def edit_letter(request: Request, letter_id: DeadLetterId, order: Edit) -> Edited:
    """Publish an edited body under a new message id, and resolve the letter. The body must match the step's contract."""
    return Edited.model_validate(await _command(request, "dead-letter.edit", order, id=letter_id))
