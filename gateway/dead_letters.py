"""Dead letters over HTTP, for the console and for scripts: look, group, replay, edit, file. The dead-letters actor answers by the bus."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator

from contracts.dead_letter import (
    DeadLetterGroups,
    DeadLetters,
    DeadLetterState,
    Edited,
    Moved,
    Replayed,
    Selection,
    Text,
    WholeDeadLetter,
)
from gateway.callers import caller_of, operators_only
from gateway.jobs import Moment, problems

router = APIRouter(prefix="/dead-letters", tags=["dead letters"], dependencies=[Depends(operators_only)])

QUESTIONS = tuple(f"dead-letter.{word}" for word in ("list", "groups", "get", "replay", "edit", "move"))
"""The steps asked here."""

LetterId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,255}$", examples=["5d1c0c9c0f3b8a21"])]
Word = Annotated[Text | None, Query()]


class Chosen(Selection):
    """Which letters: those for which everything said here holds. `everything` must be set to mean all of them."""

    model_config = ConfigDict(extra="forbid")


class Asked(BaseModel):
    """`dry_run` is on unless it is switched off."""

    model_config = ConfigDict(extra="forbid")
    dry_run: bool = True


class Replay(Asked):
    selection: Chosen
    again: bool = Field(False, description="Under a new id, so that the work is done even if it had been done.")
    per_second: float | None = Field(None, gt=0, le=100_000, description="At most so many a second.")


class Edit(Asked):
    body: dict[str, Any]

    @field_validator("body")
    @classmethod
    def sendable(cls, body: dict[str, Any]) -> dict[str, Any]:
        """What Python reads as JSON and nobody else does is refused here: NaN, and halves of surrogate pairs."""
        try:
            json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is no plain JSON: {error}") from None
        return body


class Move(Asked):
    selection: Chosen
    to: Literal["archived", "unresolved", "resolved"]


async def _ask(request: Request, step: str, **question: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await request.app.state.counter.ask(step, **question)
    return answer


async def _act(request: Request, step: str, order: Asked, **more: Any) -> dict[str, Any]:
    """Ask for something to be done, in the name of whoever's key it is."""
    caller = caller_of(request) or "http"
    return await _ask(request, step, **order.model_dump(mode="json", exclude_none=True), **more, by=caller[:255])


def selected(
    group: Word = None,
    step: Word = None,
    code: Word = None,
    exception_type: Word = None,
    tenant: Word = None,
    state: DeadLetterState | None = None,
    job_id: Word = None,
    message_id: Word = None,
    since: Moment = None,
    before: Moment = None,
) -> dict[str, Any]:
    chosen = Selection(
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
    return chosen.model_dump(mode="json", exclude_none=True)


Selected = Annotated[dict[str, Any], Depends(selected)]


@router.get("", responses=problems())
async def list_letters(
    request: Request,
    selection: Selected,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> DeadLetters:
    """Dead letters, the youngest failure first."""
    return DeadLetters.model_validate(await _ask(request, "dead-letter.list", selection=selection, limit=limit, offset=offset))


@router.get("/groups", responses=problems())
async def group_letters(
    request: Request, selection: Selected, by_tenant: bool = False, per: Literal["hour", "day"] | None = None
) -> DeadLetterGroups:
    """Dead letters by cause, the largest group first."""
    return DeadLetterGroups.model_validate(await _ask(request, "dead-letter.groups", selection=selection, by_tenant=by_tenant, per=per))


@router.post("/replay", responses=problems())
async def replay_letters(request: Request, order: Replay) -> Replayed:
    """Send letters again, each to the queue that failed and to it alone. With `dry_run` (the default) only say what would be sent."""
    return Replayed.model_validate(await _act(request, "dead-letter.replay", order))


@router.post("/move", responses=problems())
async def move_letters(request: Request, order: Move) -> Moved:
    """Archive letters, restore them (to `unresolved`), or declare them resolved."""
    return Moved.model_validate(await _act(request, "dead-letter.move", order))


@router.get("/{letter_id}", responses=problems(404))
async def get_letter(request: Request, letter_id: LetterId) -> WholeDeadLetter:
    """One letter: its body, headers, cause and history."""
    return WholeDeadLetter.model_validate(await _ask(request, "dead-letter.get", id=letter_id))


@router.post("/{letter_id}/edit", responses=problems(404, 409))
async def edit_letter(request: Request, letter_id: LetterId, order: Edit) -> Edited:
    """Send another body under a new id; the letter is resolved by it. The body must keep the step's contract."""
    return Edited.model_validate(await _act(request, "dead-letter.edit", order, id=letter_id))
