"""The pages Dead letters: groups by cause, lists, single dead letters; replay, edit and archive, each after a dry-run preview."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel

from bus.amqp.request_reply import ReplyFault
from bus.dead_letters.replay import contract_of
from contracts.dead_letter import DeadLetterGroup, DeadLetterGroups, DeadLetters, Edited, Moved, Replayed, Selection, WholeDeadLetter
from gateway.admin.dead_letters import DeadLetterId, Edit
from gateway.callers import caller_of, require_operator
from gateway.console import trend
from gateway.console.body_form import BodyField, InvalidForm, body_from_form, diff, fields_from_body
from gateway.console.form_body import SubmittedForm
from gateway.console.guard import ConsoleRoute, validate_input
from gateway.console.rendering import render_page
from gateway.json_body import parse_json
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.problems import HttpProblem
from gateway.services import services_of

PAGE_PATH = f"{CONSOLE_PATH}/dead-letters"
router = APIRouter(prefix=PAGE_PATH, route_class=ConsoleRoute, include_in_schema=False, dependencies=[Depends(require_operator)])

DEAD_LETTER_STATES = ("unresolved", "failed-again", "replay-requested", "resolved", "archived")
ACTIONS = {"replay": "replay", "again": "replay", "archive": "archived", "restore": "unresolved", "resolve": "resolved"}
"""A form's action, and `replay` or the state to move to."""
SELECTION_FIELDS = ("group", "step", "code", "state", "tenant", "job_id")
PAGE_SIZE = 50

QueryText = Annotated[str, Query(max_length=255)]


async def query_dead_letters(request: Request, operation: str, **fields: Any) -> dict[str, Any]:
    return await services_of(request).commands.query(f"dead-letter.{operation}", fields)


def build_selection(fields: dict[str, str]) -> dict[str, Any]:
    """The selection as the bus expects it. `id` selects a single dead letter. Blank and unknown fields are ignored.

    Raises HttpProblem(422).
    """
    selection: dict[str, Any] = {name: fields[name] for name in SELECTION_FIELDS if fields.get(name)}
    if fields.get("id"):
        selection["ids"] = [fields["id"]]
    if fields.get("everything"):
        selection["everything"] = True
    return validate_input(Selection, selection).model_dump(mode="json", exclude_none=True)


@router.get("")
async def show_groups(request: Request, per: str = "hour", state: QueryText = "") -> Response:
    """Dead letters by cause, the largest group first, with a histogram of the last 24 hours or 30 days."""
    per = "day" if per == "day" else "hour"
    selection = build_selection({"state": state if state in DEAD_LETTER_STATES else ""})
    since = datetime.now(UTC) - (timedelta(hours=24) if per == "hour" else timedelta(days=30))
    groups = await list_groups(request, selection=selection)
    recent = await list_groups(request, selection=selection | {"since": since.isoformat()}, per=per)
    return render_page(
        request,
        "dead_letter_groups.html",
        groups=groups,
        trends=trend.build_trends(recent, per),
        trend_width=trend.WIDTH,
        trend_height=trend.HEIGHT,
        per=per,
        state=state,
        states=DEAD_LETTER_STATES,
    )


async def list_groups(request: Request, **fields: Any) -> list[DeadLetterGroup]:
    return DeadLetterGroups.model_validate(await query_dead_letters(request, "groups", **fields)).groups


@router.get("/list")
async def list_dead_letters(
    request: Request,
    group: QueryText = "",
    step: QueryText = "",
    code: QueryText = "",
    state: QueryText = "",
    tenant: QueryText = "",
    job_id: QueryText = "",
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> Response:
    fields = {"group": group, "step": step, "code": code, "state": state, "tenant": tenant, "job_id": job_id}
    result = DeadLetters.model_validate(
        await query_dead_letters(request, "list", selection=build_selection(fields), limit=PAGE_SIZE, offset=offset)
    )
    return render_page(
        request, "dead_letters.html", result=result, fields=fields, states=DEAD_LETTER_STATES, offset=offset, page_size=PAGE_SIZE
    )


@router.get("/{letter_id}")
async def show_dead_letter(request: Request, letter_id: DeadLetterId) -> Response:
    return render_dead_letter(request, await get_dead_letter(request, letter_id))


async def get_dead_letter(request: Request, letter_id: str) -> WholeDeadLetter:
    return WholeDeadLetter.model_validate(await query_dead_letters(request, "get", id=letter_id))


def render_dead_letter(
    request: Request,
    dead_letter: WholeDeadLetter,
    errors: dict[str, str] | None = None,
    submitted_body: dict[str, Any] | None = None,
    status: int = 200,
) -> Response:
    """One dead letter, with a form for its body when it can be edited and replayed."""
    body = parse_json_body(dead_letter)
    contract, body_fields = build_body_form(dead_letter, body, submitted_body) if body is not None else (None, [])
    editable = dead_letter.state in ("unresolved", "failed-again") and dead_letter.target is not None
    return render_page(
        request,
        "dead_letter.html",
        status,
        dead_letter=dead_letter,
        body_fields=body_fields if editable else [],
        contract=contract.__name__ if contract else None,
        errors=errors or {},
        body=body,
    )


def build_body_form(
    dead_letter: WholeDeadLetter, body: dict[str, Any], submitted_body: dict[str, Any] | None = None
) -> tuple[type[BaseModel] | None, list[BodyField]]:
    """The contract of the dead letter's queue, if known, and the fields of the body (or of an edited one) according to it."""
    contract = contract_of(dead_letter.step, body)
    schema = contract.model_json_schema() if contract else None
    return contract, fields_from_body(schema, body if submitted_body is None else submitted_body)


def parse_json_body(dead_letter: WholeDeadLetter) -> dict[str, Any] | None:
    """None when the body is not a JSON object, or was truncated by the query."""
    if dead_letter.body is None or dead_letter.body_cut:
        return None
    try:
        body = json.loads(dead_letter.body.removeprefix("\ufeff"))  # a byte order mark
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


@router.post("/preview")
async def preview(request: Request) -> Response:
    """The result of a dry run, with a sample of the selected dead letters."""
    form: SubmittedForm = request.state.form
    result = await run_action(request, form, dry_run=True)
    fields = {name: form[name] for name in (*SELECTION_FIELDS, "id", "everything") if form.get(name)}
    sample = DeadLetters.model_validate(await query_dead_letters(request, "list", selection=build_selection(fields), limit=5))
    return render_page(request, "dead_letter_preview.html", action=form["action"], result=result, fields=fields, sample=sample)


@router.post("/do")
async def execute(request: Request) -> Response:
    """Run the action, then show the dead letter or the list it was started from."""
    form: SubmittedForm = request.state.form
    await run_action(request, form, dry_run=False)
    if form.get("id"):
        return RedirectResponse(f"{PAGE_PATH}/{quote(form['id'], safe='')}", 303)
    kept = [name for name in SELECTION_FIELDS if name != "state" and form.get(name)]  # the action has changed the state
    query = urlencode({name: form[name] for name in kept})
    return RedirectResponse(f"{PAGE_PATH}/list?{query}" if query else PAGE_PATH, 303)


async def run_action(request: Request, form: SubmittedForm, *, dry_run: bool) -> Replayed | Moved:
    """Replay or move the selected dead letters. Raises HttpProblem(400) for an unknown action."""
    action = form.get("action", "")
    if action not in ACTIONS:
        raise HttpProblem(400, "action-unknown", f"there is no action {action!r}")
    fields = {"selection": build_selection(form), "dry_run": dry_run, "by": operator_name(request)}
    if ACTIONS[action] == "replay":
        return Replayed.model_validate(await query_dead_letters(request, "replay", again=action == "again", **fields))
    return Moved.model_validate(await query_dead_letters(request, "move", to=ACTIONS[action], **fields))


def operator_name(request: Request) -> str:
    """The name that is recorded in a dead letter's history."""
    return (caller_of(request) or "console")[:255]


@router.post("/{letter_id}/edit")
async def edit(request: Request, letter_id: DeadLetterId) -> Response:
    """Show the changes after validation against the contract; the confirmed form (`body_json`) publishes the edited body."""
    form: SubmittedForm = request.state.form
    dead_letter = await get_dead_letter(request, letter_id)
    old_body = parse_json_body(dead_letter)
    if old_body is None:
        raise HttpProblem(409, "body-not-editable", "the body of this dead letter is not a JSON object, or it is truncated")
    if "body_json" in form:
        order = validate_input(Edit, {"body": parse_submitted_json(form["body_json"]), "dry_run": False})
        await query_dead_letters(request, "edit", id=letter_id, body=order.body, dry_run=False, by=operator_name(request))
        return RedirectResponse(f"{PAGE_PATH}/{letter_id}", 303)
    return await preview_edit(request, dead_letter, old_body, form)


def parse_submitted_json(text: str) -> Any:
    """Raises HttpProblem(422)."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise HttpProblem(422, "input-invalid", f"the body is not JSON: {error}") from None


async def preview_edit(request: Request, dead_letter: WholeDeadLetter, old_body: dict[str, Any], form: SubmittedForm) -> Response:
    _, body_fields = build_body_form(dead_letter, old_body)
    try:
        new_body = body_from_form(body_fields, form)
    except InvalidForm as error:
        return render_dead_letter(request, dead_letter, error.errors, status=422)
    try:
        result = Edited.model_validate(await query_dead_letters(request, "edit", id=dead_letter.id, body=new_body, dry_run=True))
    except ReplyFault as error:
        return render_dead_letter(request, dead_letter, {"": error.fault.message}, new_body, 422)
    changes = list(diff(old_body, new_body))
    return render_page(request, "dead_letter_edit.html", dead_letter=dead_letter, result=result, changes=changes, new_body=new_body)
