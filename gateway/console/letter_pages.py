"""Dead letters: by cause over time, one by one, sent again as they are or edited, filed; each after a look at what will happen."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response

from bus.dead_letters.replay import contract_of
from bus.request_reply import ReplyFault
from contracts.dead_letter import DeadLetterGroups, DeadLetters, Edited, Moved, Replayed, Selection, WholeDeadLetter
from gateway.callers import caller_of, operators_only
from gateway.console.body_form import Unreadable, body_of, changes, entries_of
from gateway.console.counter import ConsoleRoute, Form
from gateway.console.rendering import page
from gateway.console.sessions import PATH
from gateway.console.trend import trends_of
from gateway.dead_letters import Edit, LetterId
from gateway.problems import Refused

HERE = f"{PATH}/dead-letters"
router = APIRouter(prefix=HERE, route_class=ConsoleRoute, include_in_schema=False, dependencies=[Depends(operators_only)])

STATES = ("unresolved", "failed-again", "replay-requested", "resolved", "archived")
ACTIONS = {"replay": "replay", "again": "replay", "archive": "archived", "restore": "unresolved", "resolve": "resolved"}
FIELDS = ("group", "step", "code", "state", "tenant", "job_id")
PAGE = 50

Word = Annotated[str, Query(max_length=255)]


async def ask(request: Request, step: str, **question: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await request.app.state.counter.ask(f"dead-letter.{step}", **question)
    return answer


def selection_of(fields: dict[str, str]) -> dict[str, Any]:
    """As the bus takes it. `id` means that one letter."""
    chosen: dict[str, Any] = {name: fields[name] for name in FIELDS if fields.get(name)}
    if fields.get("id"):
        chosen["ids"] = [fields["id"]]
    if fields.get("everything"):
        chosen["everything"] = True
    return Selection.model_validate(chosen).model_dump(mode="json", exclude_none=True)


@router.get("")
async def groups(request: Request, per: str = "hour", state: Word = "") -> Response:
    """Causes, the largest first, with how many came when."""
    per = "day" if per == "day" else "hour"
    selection = selection_of({"state": state if state in STATES else ""})
    since = datetime.now(UTC) - (timedelta(hours=24) if per == "hour" else timedelta(days=30))
    found = DeadLetterGroups.model_validate(await ask(request, "groups", selection=selection)).groups
    lately = DeadLetterGroups.model_validate(
        await ask(request, "groups", selection=selection | {"since": since.isoformat()}, per=per)
    ).groups
    return page(request, "letter_groups.html", groups=found, trends=trends_of(lately, per), per=per, state=state, states=STATES)


@router.get("/list")
async def letters(
    request: Request,
    group: Word = "",
    step: Word = "",
    code: Word = "",
    state: Word = "",
    tenant: Word = "",
    job_id: Word = "",
    offset: int = 0,
) -> Response:
    fields = {"group": group, "step": step, "code": code, "state": state, "tenant": tenant, "job_id": job_id}
    selection = selection_of(fields)
    found = DeadLetters.model_validate(await ask(request, "list", selection=selection, limit=PAGE, offset=max(offset, 0)))
    return page(request, "letters.html", found=found, fields=fields, states=STATES, offset=offset, size=PAGE)


@router.get("/{letter_id}")
async def letter(request: Request, letter_id: LetterId) -> Response:
    return await shown(request, await one(request, letter_id))


async def one(request: Request, letter_id: str) -> WholeDeadLetter:
    return WholeDeadLetter.model_validate(await ask(request, "get", id=letter_id))


async def shown(
    request: Request, letter: WholeDeadLetter, wrong: dict[str, str] | None = None, typed: dict[str, Any] | None = None, status: int = 200
) -> Response:
    """A letter, with its body as a form where it may be edited."""
    body = body_in(letter)
    editable = letter.state in ("unresolved", "failed-again") and body is not None and letter.target is not None
    contract = contract_of(letter.step, body) if body is not None else None
    shown_body = body if typed is None else typed
    entries = entries_of(contract.model_json_schema() if contract else None, shown_body) if editable and shown_body is not None else []
    name = contract.__name__ if contract else None
    return page(request, "letter.html", status, letter=letter, entries=entries, contract=name, wrong=wrong or {}, body=body)


def body_in(letter: WholeDeadLetter) -> dict[str, Any] | None:
    """None for what is no JSON object, or longer than what came."""
    if letter.body is None or letter.body_cut:
        return None
    try:
        body = json.loads(letter.body)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


@router.post("/preview")
async def preview(request: Request) -> Response:
    """What would happen, by the word of those who would do it."""
    form: Form = request.state.form
    answer = await act(request, form, dry_run=True)
    fields = {name: form[name] for name in (*FIELDS, "id", "everything") if form.get(name)}
    sample = DeadLetters.model_validate(await ask(request, "list", selection=selection_of(fields), limit=5))
    return page(request, "letter_preview.html", action=form["action"], answer=answer, fields=fields, sample=sample)


@router.post("/do")
async def do(request: Request) -> Response:
    """Back to the letter, or to the letters, where what came of it appears."""
    form: Form = request.state.form
    await act(request, form, dry_run=False)
    if form.get("id"):
        return RedirectResponse(f"{HERE}/{form['id']}", 303)
    kept = "&".join(f"{name}={form[name]}" for name in ("group", "step", "code") if form.get(name))
    return RedirectResponse(f"{HERE}/list?{kept}" if kept else HERE, 303)


async def act(request: Request, form: Form, *, dry_run: bool) -> Replayed | Moved:
    """Raises Refused for an action that there is none of."""
    what, selection = ACTIONS.get(form.get("action", "")), selection_of(form)
    by = (caller_of(request) or "console")[:255]
    if what is None:
        raise Refused(400, "action-unknown", f"there is no action {form.get('action', '')!r}")
    if what == "replay":
        again = form["action"] == "again"
        return Replayed.model_validate(await ask(request, "replay", selection=selection, again=again, dry_run=dry_run, by=by))
    return Moved.model_validate(await ask(request, "move", selection=selection, to=what, dry_run=dry_run, by=by))


@router.post("/{letter_id}/edit")
async def edit(request: Request, letter_id: LetterId) -> Response:
    """First what would change, checked against the contract; sent when that is confirmed."""
    form: Form = request.state.form
    found = await one(request, letter_id)
    old = body_in(found)
    if old is None:
        raise Refused(409, "body-not-editable", "the body of this letter is no JSON object that was shown whole")
    if "whole" in form:
        order = Edit.model_validate({"body": json.loads(form["whole"]), "dry_run": False})
        await ask(request, "edit", id=letter_id, body=order.body, dry_run=False, by=(caller_of(request) or "console")[:255])
        return RedirectResponse(f"{HERE}/{letter_id}", 303)
    contract = contract_of(found.step, old)
    entries = entries_of(contract.model_json_schema() if contract else None, old)
    try:
        new = body_of(entries, form)
    except Unreadable as error:
        return await shown(request, found, error.wrong, status=422)
    try:
        answer = Edited.model_validate(await ask(request, "edit", id=letter_id, body=new, dry_run=True))
    except ReplyFault as error:
        return await shown(request, found, {"": error.fault.message}, new, 422)
    return page(request, "letter_edit.html", letter=found, answer=answer, changes=list(changes(old, new)), new=new)
