"""Dead letters: by cause over time, one by one, sent again as they are or edited, filed; each after a look at what will happen."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response

from bus.amqp.request_reply import ReplyFault
from bus.dead_letters.replay import contract_of
from contracts.dead_letter import DeadLetterGroups, DeadLetters, Edited, Moved, Replayed, Selection, WholeDeadLetter
from gateway.admin.dead_letters import DeadLetterId, Edit
from gateway.callers import caller_of, require_operator
from gateway.console.body_form import InvalidForm, body_from_form, diff, fields_from_body
from gateway.console.guard import ConsoleRoute, SubmittedForm
from gateway.console.rendering import render_page
from gateway.console.trend import build_trends
from gateway.middleware.sessions import CONSOLE_PATH
from gateway.problems import HttpProblem

PAGE_PATH = f"{CONSOLE_PATH}/dead-letters"
router = APIRouter(prefix=PAGE_PATH, route_class=ConsoleRoute, include_in_schema=False, dependencies=[Depends(require_operator)])

DEAD_LETTER_STATES = ("unresolved", "failed-again", "replay-requested", "resolved", "archived")
ACTIONS = {"replay": "replay", "again": "replay", "archive": "archived", "restore": "unresolved", "resolve": "resolved"}
SELECTION_FIELDS = ("group", "step", "code", "state", "tenant", "job_id")
PAGE_SIZE = 50

QueryText = Annotated[str, Query(max_length=255)]


async def query_dead_letters(request: Request, operation: str, **arguments: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await request.app.state.jobs.query(f"dead-letter.{operation}", **arguments)
    return answer


def build_selection(fields: dict[str, str]) -> dict[str, Any]:
    """As the bus takes it. `id` means that one letter."""
    chosen: dict[str, Any] = {name: fields[name] for name in SELECTION_FIELDS if fields.get(name)}
    if fields.get("id"):
        chosen["ids"] = [fields["id"]]
    if fields.get("everything"):
        chosen["everything"] = True
    return Selection.model_validate(chosen).model_dump(mode="json", exclude_none=True)


@router.get("")
async def list_groups(request: Request, per: str = "hour", state: QueryText = "") -> Response:
    """Causes, the largest first, with how many came when."""
    per = "day" if per == "day" else "hour"
    selection = build_selection({"state": state if state in DEAD_LETTER_STATES else ""})
    since = datetime.now(UTC) - (timedelta(hours=24) if per == "hour" else timedelta(days=30))
    found = DeadLetterGroups.model_validate(await query_dead_letters(request, "groups", selection=selection)).groups
    lately = DeadLetterGroups.model_validate(
        await query_dead_letters(request, "groups", selection=selection | {"since": since.isoformat()}, per=per)
    ).groups
    return render_page(
        request, "letter_groups.html", groups=found, trends=build_trends(lately, per), per=per, state=state, states=DEAD_LETTER_STATES
    )


@router.get("/list")
async def list_dead_letters(
    request: Request,
    group: QueryText = "",
    step: QueryText = "",
    code: QueryText = "",
    state: QueryText = "",
    tenant: QueryText = "",
    job_id: QueryText = "",
    offset: int = 0,
) -> Response:
    fields = {"group": group, "step": step, "code": code, "state": state, "tenant": tenant, "job_id": job_id}
    selection = build_selection(fields)
    found = DeadLetters.model_validate(
        await query_dead_letters(request, "list", selection=selection, limit=PAGE_SIZE, offset=max(offset, 0))
    )
    return render_page(request, "letters.html", found=found, fields=fields, states=DEAD_LETTER_STATES, offset=offset, size=PAGE_SIZE)


@router.get("/{letter_id}")
async def show_dead_letter(request: Request, letter_id: DeadLetterId) -> Response:
    return await render_dead_letter(request, await get_dead_letter(request, letter_id))


async def get_dead_letter(request: Request, letter_id: str) -> WholeDeadLetter:
    return WholeDeadLetter.model_validate(await query_dead_letters(request, "get", id=letter_id))


async def render_dead_letter(
    request: Request,
    dead_letter: WholeDeadLetter,
    errors: dict[str, str] | None = None,
    submitted_body: dict[str, Any] | None = None,
    status: int = 200,
) -> Response:
    """A letter, with its body as a form where it may be edited."""
    body = parse_json_body(dead_letter)
    editable = dead_letter.state in ("unresolved", "failed-again") and body is not None and dead_letter.target is not None
    contract = contract_of(dead_letter.step, body) if body is not None else None
    shown_body = body if submitted_body is None else submitted_body
    entries = (
        fields_from_body(contract.model_json_schema() if contract else None, shown_body) if editable and shown_body is not None else []
    )
    name = contract.__name__ if contract else None
    return render_page(request, "letter.html", status, letter=dead_letter, entries=entries, contract=name, wrong=errors or {}, body=body)


def parse_json_body(dead_letter: WholeDeadLetter) -> dict[str, Any] | None:
    """None for what is no JSON object, or longer than what came."""
    if dead_letter.body is None or dead_letter.body_cut:
        return None
    try:
        body = json.loads(dead_letter.body)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


@router.post("/preview")
async def preview(request: Request) -> Response:
    """What would happen, by the word of those who would do it."""
    form: SubmittedForm = request.state.form
    answer = await run_action(request, form, dry_run=True)
    fields = {name: form[name] for name in (*SELECTION_FIELDS, "id", "everything") if form.get(name)}
    sample = DeadLetters.model_validate(await query_dead_letters(request, "list", selection=build_selection(fields), limit=5))
    return render_page(request, "letter_preview.html", action=form["action"], answer=answer, fields=fields, sample=sample)


@router.post("/do")
async def execute(request: Request) -> Response:
    """Back to the letter, or to the letters, where what came of it appears."""
    form: SubmittedForm = request.state.form
    await run_action(request, form, dry_run=False)
    if form.get("id"):
        return RedirectResponse(f"{PAGE_PATH}/{form['id']}", 303)
    kept = "&".join(f"{name}={form[name]}" for name in ("group", "step", "code") if form.get(name))
    return RedirectResponse(f"{PAGE_PATH}/list?{kept}" if kept else PAGE_PATH, 303)


async def run_action(request: Request, form: SubmittedForm, *, dry_run: bool) -> Replayed | Moved:
    """Raises Refused for an action that there is none of."""
    what, selection = ACTIONS.get(form.get("action", "")), build_selection(form)
    by = (caller_of(request) or "console")[:255]
    if what is None:
        raise HttpProblem(400, "action-unknown", f"there is no action {form.get('action', '')!r}")
    if what == "replay":
        again = form["action"] == "again"
        return Replayed.model_validate(
            await query_dead_letters(request, "replay", selection=selection, again=again, dry_run=dry_run, by=by)
        )
    return Moved.model_validate(await query_dead_letters(request, "move", selection=selection, to=what, dry_run=dry_run, by=by))


@router.post("/{letter_id}/edit")
async def edit(request: Request, letter_id: DeadLetterId) -> Response:
    """First what would change, checked against the contract; sent when that is confirmed."""
    form: SubmittedForm = request.state.form
    found = await get_dead_letter(request, letter_id)
    old = parse_json_body(found)
    if old is None:
        raise HttpProblem(409, "body-not-editable", "the body of this letter is no JSON object that was shown whole")
    if "whole" in form:
        order = Edit.model_validate({"body": json.loads(form["whole"]), "dry_run": False})
        await query_dead_letters(request, "edit", id=letter_id, body=order.body, dry_run=False, by=(caller_of(request) or "console")[:255])
        return RedirectResponse(f"{PAGE_PATH}/{letter_id}", 303)
    contract = contract_of(found.step, old)
    entries = fields_from_body(contract.model_json_schema() if contract else None, old)
    try:
        new = body_from_form(entries, form)
    except InvalidForm as error:
        return await render_dead_letter(request, found, error.errors, status=422)
    try:
        answer = Edited.model_validate(await query_dead_letters(request, "edit", id=letter_id, body=new, dry_run=True))
    except ReplyFault as error:
        return await render_dead_letter(request, found, {"": error.fault.message}, new, 422)
    return render_page(request, "letter_edit.html", letter=found, answer=answer, changes=list(diff(old, new)), new=new)
